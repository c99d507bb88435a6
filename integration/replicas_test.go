package integration

import (
	"os"
	osexec "os/exec"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq/internal/servers"
)

// examples/replicas has a test of its own, which needs a primary and a standby.
func TestReplicas(t *testing.T) {
	primary, standby := servers.SharedPair(t)
	cmd := osexec.Command("go", "test", "-count=1", "-v", "./replicas")
	cmd.Dir = "../examples"
	cmd.Env = append(os.Environ(), "REPLICAS_PRIMARY_DSN="+primary.DSN, "REPLICAS_STANDBY_DSN="+standby.DSN)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestReadYourWrites") {
		t.Fatalf("%v\n%s", err, out)
	}
}
