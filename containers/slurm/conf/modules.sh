# Modules are for heidi, whose own Python is too old: others' login shells are quicker without.
if [ "$(id -un)" = heidi ]; then . /usr/share/modules/init/bash; fi
