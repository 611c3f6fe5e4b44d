# What careless start-up files do to those who read a command's output: prints without a newline, bytes that aren't UTF-8,
# terminal codes, errors, another working folder, an alias, a failing last command.
cat /etc/slurmbus/noise
printf '\033[1;32mWelcome, erin! \377\376 Quota: 93 %%\033[0m'
echo "bashrc: module: command not found" >&2
stty erase '^H' 2>&1
alias ls='ls --color=always' cat='cat -A'
cd /tmp
false
