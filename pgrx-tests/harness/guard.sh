#!/bin/sh
# Removes a throwaway cluster when whoever started it is gone, however it went: its standard input
# is a pipe that the kernel closes even if the runner is killed. Usage: guard.sh DIRECTORY
directory=$1
cat >/dev/null

pid_file=$directory/data/postmaster.pid
pid=$(head -n 1 "$pid_file" 2>/dev/null)
# A postmaster that was killed leaves its pid file behind, and the number may be another's by now.
if [ -n "$pid" ] && [ "$(readlink "/proc/$pid/cwd")" = "$directory/data" ]; then
    kill -INT "$pid"
    rounds=0
    while [ -e "$pid_file" ] && [ $rounds -lt 100 ]; do
        sleep 0.1
        rounds=$((rounds + 1))
    done
    [ -e "$pid_file" ] && kill -KILL "$pid"
fi
rm -rf "$directory"
# A backend that outlived its postmaster for a moment may have written once more.
[ ! -e "$directory" ] || { sleep 0.5; rm -rf "$directory"; }
