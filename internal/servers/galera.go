package servers

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// SharedGalera returns the three nodes of a cluster that the tests leave as it is.
// Every node takes writes.
func SharedGalera(t testing.TB) []*MariaDB {
	t.Helper()
	if dsns := strings.Fields(os.Getenv(GaleraDSNs)); len(dsns) > 0 {
		var nodes []*MariaDB
		for _, dsn := range dsns {
			nodes = append(nodes, &MariaDB{DSN: dsn})
		}
		return nodes
	}
	return sharedGalera.get(t, func() ([]*MariaDB, error) { return StartGalera(3) })
}

// NewGalera starts a cluster of n nodes of the test's own. The settings are for each.
func NewGalera(t testing.TB, n int, settings ...string) []*MariaDB {
	t.Helper()
	nodes, err := StartGalera(n, settings...)
	need(t, err)
	for _, m := range nodes {
		removeAfter(t, m.server)
	}
	return nodes
}

// StartGalera starts a cluster of n nodes. The settings are for each.
//
// A node that was stopped or killed joins the cluster again by its Start, which
// returns when it has what it has missed. It needs more than half of the nodes for
// that: if there are fewer, those that are missing are to be started at the same time.
func StartGalera(n int, settings ...string) ([]*MariaDB, error) {
	provider, err := galeraProvider()
	if err != nil {
		return nil, err
	}
	free, err := ports(3 * n)
	if err != nil {
		return nil, err
	}
	var nodes []*MariaDB
	for i := range n {
		m, err := newMariaDB(fmt.Sprintf("galera%d", i+1), append(galeraSettings(provider, free, i), settings...))
		if err != nil {
			return nil, fmt.Errorf("node %d: %w", i+1, err)
		}
		m.ready = m.synced
		joins := m.argv
		if i == 0 {
			m.argv = append(joins, "--wsrep-new-cluster")
		}
		if err := m.Start(); err != nil {
			return nil, fmt.Errorf("node %d: %w", i+1, err)
		}
		m.argv = joins // it is the first only once
		nodes = append(nodes, m)
	}
	return nodes, nodes[0].createDatabase()
}

// galeraProvider returns the library's path, if what Galera needs is there.
func galeraProvider() (string, error) {
	const packages = "mariadb-server galera-4 rsync socat lsof iproute2"
	providers, _ := filepath.Glob("/usr/lib*/galera/libgalera_smm.so")
	if len(providers) == 0 {
		return "", &errMissing{"Galera", packages}
	}
	for _, name := range []string{"rsync", "socat", "lsof", "ss"} { // of the state transfer
		if _, err := exec.LookPath(name); err != nil {
			return "", &errMissing{name, packages}
		}
	}
	return providers[0], nil
}

// galeraSettings returns those of a node. Each has three of the ports.
func galeraSettings(provider string, ports []int, node int) []string {
	var members []string
	for i := 0; i < len(ports); i += 3 {
		members = append(members, fmt.Sprintf("127.0.0.1:%d", ports[i]))
	}
	base, ist, sst := ports[3*node], ports[3*node+1], ports[3*node+2]
	return []string{
		"binlog_format=ROW",
		"innodb_autoinc_lock_mode=2",
		"wsrep_on=ON",
		"wsrep_provider=" + provider,
		"wsrep_cluster_name=sqlreq",
		"wsrep_cluster_address=gcomm://" + strings.Join(members, ","),
		fmt.Sprintf("wsrep_node_name=n%d", node+1),
		fmt.Sprintf("wsrep_node_address=127.0.0.1:%d", base),
		"wsrep_sst_method=rsync",
		fmt.Sprintf("wsrep_sst_receive_address=127.0.0.1:%d", sst),
		"wsrep_slave_threads=2",
		fmt.Sprintf(`wsrep_provider_options="base_host=127.0.0.1;base_port=%d;gmcast.listen_addr=tcp://127.0.0.1:%d;ist.recv_addr=127.0.0.1:%d;gcache.size=32M"`, base, base, ist),
	}
}

// synced succeeds if the node takes part in the cluster and has what the others have.
func (m *MariaDB) synced(ctx context.Context) error {
	const variable = "wsrep_local_state_comment"
	got, err := m.query(ctx, "SHOW STATUS LIKE '"+variable+"'")
	if err == nil && got != variable+"\tSynced" {
		err = fmt.Errorf("its state is %q", got)
	}
	return err
}
