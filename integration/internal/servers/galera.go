package servers

import (
	"context"
	"database/sql"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// newGalera starts a cluster. Every node takes writes.
func newGalera(n int) ([]*MariaDB, error) {
	const packages = "mariadb-server galera-4 rsync socat lsof iproute2"
	providers, _ := filepath.Glob("/usr/lib*/galera/libgalera_smm.so")
	if len(providers) == 0 {
		return nil, &errMissing{"Galera", packages}
	}
	for _, name := range []string{"rsync", "socat", "lsof", "ss"} { // of the state transfer
		if _, err := exec.LookPath(name); err != nil {
			return nil, &errMissing{name, packages}
		}
	}
	free, err := ports(3 * n)
	if err != nil {
		return nil, err
	}
	var members []string
	for i := range n {
		members = append(members, fmt.Sprintf("127.0.0.1:%d", free[3*i]))
	}
	var nodes []*MariaDB
	for i := range n {
		base, ist, sst := free[3*i], free[3*i+1], free[3*i+2]
		var args []string
		if i == 0 {
			args = []string{"--wsrep-new-cluster"}
		}
		m, err := newMariaDB(fmt.Sprintf("galera%d", i+1), []string{
			"binlog_format=ROW",
			"innodb_autoinc_lock_mode=2",
			"wsrep_on=ON",
			"wsrep_provider=" + providers[0],
			"wsrep_cluster_name=sqlreq",
			"wsrep_cluster_address=gcomm://" + strings.Join(members, ","),
			fmt.Sprintf("wsrep_node_name=n%d", i+1),
			fmt.Sprintf("wsrep_node_address=127.0.0.1:%d", base),
			"wsrep_sst_method=rsync",
			fmt.Sprintf("wsrep_sst_receive_address=127.0.0.1:%d", sst),
			"wsrep_slave_threads=2",
			fmt.Sprintf(`wsrep_provider_options="base_host=127.0.0.1;base_port=%d;gmcast.listen_addr=tcp://127.0.0.1:%d;ist.recv_addr=127.0.0.1:%d;gcache.size=32M"`, base, base, ist),
		}, args...)
		if err != nil {
			return nil, fmt.Errorf("node %d: %w", i+1, err)
		}
		if err := m.synced(); err != nil {
			return nil, fmt.Errorf("node %d: %w", i+1, err)
		}
		nodes = append(nodes, m)
	}
	if err := nodes[0].createDatabase(); err != nil {
		return nil, err
	}
	for _, m := range nodes[1:] {
		m.DSN += "sqlreq"
	}
	return nodes, nil
}

// synced waits until the node takes part in the cluster.
func (m *MariaDB) synced() error {
	db, err := sql.Open("mysql", m.DSN)
	if err != nil {
		return err
	}
	defer db.Close()
	return m.process.ready(func(ctx context.Context) error {
		var name, state string
		if err := db.QueryRowContext(ctx, "SHOW STATUS LIKE 'wsrep_local_state_comment'").Scan(&name, &state); err != nil {
			return err
		}
		if state != "Synced" {
			return fmt.Errorf("its state is %q", state)
		}
		return nil
	})
}
