# Ends a test run: stops its servers and removes its directory once nobody has held its lock for 20 seconds.
# $1 is the directory of the run, $2 the file that every test process holds a shared lock on.
directory=$1
lock=$2

# Takes an exclusive lock on an open file, or fails at once.
try_lock() {
  if command -v flock >/dev/null 2>&1; then
    flock -n "$1"
  else
    perl -e 'open(my $file, "<&=", $ARGV[0]) or exit 1; exit(flock($file, 2 | 4) ? 0 : 1)' "$1"
  fi
}

exec 8>"$directory/watchdog.lock" || exit 0
try_lock 8 || exit 0

quiet=0
while [ "$quiet" -lt 10 ]; do
  exec 9>&-
  sleep 2 8>&-
  [ -d "$directory" ] || exit 0
  exec 9>>"$lock"
  if try_lock 9; then quiet=$((quiet + 1)); else quiet=0; fi
done

# The lock is held from here on, so no test process can join before all is gone.
for file in "$directory"/*/data/postmaster.pid; do
  [ -f "$file" ] || continue
  pid=$(head -n 1 "$file")
  kill -QUIT "$pid" 2>/dev/null || continue
  patience=50
  while [ "$patience" -gt 0 ] && kill -0 "$pid" 2>/dev/null; do
    sleep 0.2
    patience=$((patience - 1))
  done
  [ "$patience" -gt 0 ] || kill -KILL "$pid" 2>/dev/null
done
rm -rf "$directory"
rm -f "$lock"
