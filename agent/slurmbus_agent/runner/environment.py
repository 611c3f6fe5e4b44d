"""What the payload runs in: a virtual environment or conda prefix, environment modules, or an Apptainer image."""

from __future__ import annotations

import os

from slurmbus_agent.runner.payload import NotStarted
from slurmbus_agent.runner.protocol import EXIT_NOT_FOUND

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SHELL = """\
slurmbus_preamble=$1 slurmbus_modules=("${@:3:$2}")
shift $((2 + $2))
if (( ${#slurmbus_modules[@]} )); then
  set +eu
  for slurmbus_init in /etc/profile.d/lmod.sh /etc/profile.d/modules.sh /usr/share/lmod/lmod/init/bash \
/usr/share/modules/init/bash "${MODULESHOME-}/init/bash"; do
    [[ $(type -t module) ]] && break
    [[ -r $slurmbus_init ]] && . "$slurmbus_init"
  done
  if [[ ! $(type -t module) ]]; then
    echo "slurmbus: there are no environment modules on $HOSTNAME: the command 'module' isn't defined" >&2
    exit 127
  fi
  for slurmbus_words in "${slurmbus_modules[@]}"; do
    read -ra slurmbus_module <<<"$slurmbus_words"
    module "${slurmbus_module[@]}" || {
      echo "slurmbus: 'module ${slurmbus_module[*]}' failed on $HOSTNAME" >&2
      exit 1
    }
  done
  set -eu
fi
eval -- "$slurmbus_preamble"
if [[ -n ${SLURMBUS_PREFIX-} ]]; then
  export PATH="$SLURMBUS_PREFIX/bin:$PATH"
  unset PYTHONHOME
  set +eu
  for slurmbus_script in "$SLURMBUS_PREFIX"/etc/conda/activate.d/*.sh; do
    [[ -r $slurmbus_script ]] && . "$slurmbus_script"
  done
  set -eu
fi
if [[ -n ${SLURMBUS_PIPES_PATH-} ]]; then
  export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$SLURMBUS_PIPES_PATH"
fi
exec "$@"
"""
"""What bash runs when there is a preamble, modules or conda's own scripts; the user's words come as arguments and are
never pasted into a script."""


class Environment:
    """An environment as it stands in plan.json; without one, that of the login shell."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.prefix = str(content.get("prefix") or "")
        self.modules = [str(words) for words in content.get("modules") or ()]
        self.image = str(content.get("image") or "")
        self.binds = [str(bind) for bind in content.get("binds") or ()]
        self.options = [str(word) for word in content.get("options") or ()]
        self.program = str(content.get("program") or "apptainer")

    def check(self) -> None:
        """Raise NotStarted when it isn't on this node."""
        if self.prefix and not os.path.isdir(self.prefix + "/bin"):
            raise NotStarted(f"the environment {self.prefix} isn't on this node: it has no 'bin'", EXIT_NOT_FOUND)
        if self.image and not os.path.exists(self.image):
            raise NotStarted(f"the image {self.image} isn't on this node", EXIT_NOT_FOUND)

    @property
    def needs_shell(self) -> bool:
        """Tell whether only bash can set it up."""
        return bool(self.modules) or (bool(self.prefix) and os.path.isdir(self.prefix + "/etc/conda/activate.d"))

    def wrap(self, argv: list[str], cwd: str, folders: list[str]) -> list[str]:
        """Give a command that runs another one inside the image, which sees these folders."""
        if not self.image:
            return argv
        binds = [bind for folder in dict.fromkeys([*folders, cwd]) for bind in ("--bind", folder)]
        binds += [word for bind in self.binds for word in ("--bind", bind)]
        return [self.program, "exec", *binds, "--pwd", cwd, *self.options, self.image, *argv]

    def set_variables(self, env: dict[str, str], *, shell: bool) -> None:
        """Put the environment's variables into a payload's; of PATH bash takes care itself."""
        if not self.prefix:
            return
        if os.path.isdir(self.prefix + "/conda-meta"):
            env["CONDA_PREFIX"] = self.prefix
            env["CONDA_DEFAULT_ENV"] = os.path.basename(self.prefix)
            env["CONDA_SHLVL"] = "1"
            env.pop("VIRTUAL_ENV", None)
        else:
            env["VIRTUAL_ENV"] = self.prefix
            env.pop("CONDA_PREFIX", None)
        env["PYTHONNOUSERSITE"] = "1"  # what lies in ~/.local isn't part of it
        if shell:
            env["SLURMBUS_PREFIX"] = self.prefix
            return
        env.pop("PYTHONHOME", None)
        env["PATH"] = f"{self.prefix}/bin:{env['PATH']}" if env.get("PATH") else f"{self.prefix}/bin"
