package servers

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
)

// A run is what one test process starts. It has a folder, in which are the folders of the servers, and
//
//	lock       locked (flock) while the test process or its keeper lives
//	boot       the id of the machine's boot
//	processes  a line for each process: the signal that ends it, its id, its start time
//
// The keeper is a shell that ends the processes and removes the folder when the pipe to
// it is closed. That is when the test process ends: well, by a panic in any
// goroutine, by os.Exit, by an interrupt, or killed. Where the keeper was killed too,
// nobody holds the lock, and the next run does the same with what was left.
const runPrefix = "sqlreq-servers-"

// keeperScript cleans up after the run whose folder is $1, when its input ends. The
// start time tells a process from a later one with the same id.
const keeperScript = `
exec 2>/dev/null
cat >/dev/null
running() { # id, start time
	stat=$(cat "/proc/$1/stat") || return 1
	set -- "$2" ${stat##*) } # from the third field on, the state; the start time is the 22nd
	[ "$2" != Z ] && [ "${21}" = "$1" ] # a zombie has ended, though nobody may be there to ask for its status
}
session() { # id of its first process; prints the ids of those that have not ended
	first=$1
	for file in /proc/[0-9]*/stat; do
		read -r stat <"$file" || continue
		set -- ${stat##*) }
		[ "$1" = Z ] || [ "$4" != "$first" ] || echo "${stat%% *}"
	done
}
tries=0
waits() {
	tries=$((tries + 1))
	[ $tries -lt "$1" ] && sleep 0.05
}
kill_session() {
	while ids=$(session "$1") && [ -n "$ids" ]; do
		kill -s KILL $ids
		waits 300 || return
	done
}
if [ "$(cat "$1/boot")" = "$(cat /proc/sys/kernel/random/boot_id)" ]; then
	while read -r signal pid began; do
		running "$pid" "$began" || continue
		case $signal in
		QUIT) kill -s QUIT "$pid" ;;
		KILL) kill_session "$pid" ;;
		esac
	done <"$1/processes"
	while read -r signal pid began; do
		while running "$pid" "$began"; do
			waits 100 || kill_session "$pid" || break
		done
	done <"$1/processes"
fi
rm -rf "$1"
`

var run struct {
	sync.Mutex
	dir    string // "" if nothing was started
	keeper *exec.Cmd
	in     io.WriteCloser
}

// runFolder returns the folder of the run, which it makes when it is called first.
func runFolder() (string, error) {
	run.Lock()
	defer run.Unlock()
	if run.dir != "" {
		return run.dir, nil
	}
	removeLeftovers(os.TempDir())
	dir, lock, err := newRun(os.TempDir())
	if err != nil {
		return "", err
	}
	defer lock.Close() // the keeper has it
	cmd := exec.Command("/bin/sh", "-c", keeperScript, "sh", dir)
	cmd.ExtraFiles = []*os.File{lock}
	cmd.SysProcAttr = new(account).session() // an interrupt at the terminal is not for it
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	run.dir, run.keeper, run.in = dir, cmd, in
	return dir, nil
}

// newRun makes the folder of a run, which is locked as long as lock is open in any process.
func newRun(parent string) (dir string, lock *os.File, err error) {
	dir, err = os.MkdirTemp(parent, runPrefix)
	if err != nil {
		return "", nil, err
	}
	// The accounts of the servers have to get to their folders.
	if err := os.Chmod(dir, 0o711); err != nil {
		return "", nil, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", nil, err
	}
	for name, text := range map[string][]byte{"boot": boot, "processes": nil} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			return "", nil, err
		}
	}
	// It gets its name when it is locked, so that another run does not take it for a leftover in between.
	unnamed := filepath.Join(dir, "lock.new")
	lock, err = os.Create(unnamed)
	if err != nil {
		return "", nil, err
	}
	if err := lockFile(lock); err != nil {
		return "", nil, errors.Join(err, lock.Close())
	}
	return dir, lock, os.Rename(unnamed, filepath.Join(dir, "lock"))
}

// removeLeftovers does what the keepers of earlier runs could not do, because they were killed.
func removeLeftovers(parent string) {
	dirs, _ := filepath.Glob(filepath.Join(parent, runPrefix+"*"))
	for _, dir := range dirs {
		lock, err := os.Open(filepath.Join(dir, "lock"))
		if err != nil {
			continue // somebody else's, or not yet complete
		}
		if lockFile(lock) == nil {
			_ = exec.Command("/bin/sh", "-c", keeperScript, "sh", dir).Run()
		}
		_ = lock.Close()
	}
}

// endsWithTests has the keeper end a process of this one by a signal: SIGQUIT, or SIGKILL to its session.
func endsWithTests(pid int, signal syscall.Signal) error {
	dir, err := runFolder()
	if err != nil {
		return err
	}
	began, err := startTime(pid)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, "processes"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	name := map[syscall.Signal]string{syscall.SIGQUIT: "QUIT", syscall.SIGKILL: "KILL"}[signal]
	_, err = fmt.Fprintln(f, name, pid, began)
	return errors.Join(err, f.Close())
}

// Stop stops every server that was started and removes the folders.
func Stop() error {
	run.Lock()
	defer run.Unlock()
	if run.dir == "" {
		return nil
	}
	err := errors.Join(run.in.Close(), run.keeper.Wait())
	run.dir = ""
	return err
}
