#!/bin/sh
# entry.sh COMMAND...: runs it, and after a failure waits before it ends as the command did.
#
# A SuperNode that was killed stays "online" at the SuperLink for about a minute, and one that comes
# back with the same key before that is refused and ends. Compose cannot delay a restart; the wait
# here ($PFSR_RESTART_DELAY seconds, default 0) keeps a restart policy from hammering.
set -u

child=
stopped=
trap 'stopped=yes; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM INT
"$@" &
child=$!
[ -z "$stopped" ] || kill -TERM "$child" 2>/dev/null  # it came before the command had a number

wait "$child"
code=$?
while kill -0 "$child" 2>/dev/null; do  # a signal ended the wait, not the command
    wait "$child"
    code=$?
done

if [ "$code" -ne 0 ] && [ -z "$stopped" ]; then
    delay=${PFSR_RESTART_DELAY:-0}
    echo "$1 ended with code $code; waiting $delay seconds before ending" >&2
    sleep "$delay" &
    child=$!
    wait "$child"
fi
exit "$code"
