// Package loadtest has the tests that run the whole service as it would be deployed, and kill it: three processes behind
// one port, on PostgreSQL with a standby that takes over, and on a SQLite file. Clients repeat what is not answered, with
// the same key, and go away in the middle. At the end the database is compared with what they were told.
//
//	go test ./loadtest                         a short round of each
//	go test ./loadtest -long -v                three long ones, and what the same service without sqlreq makes of it
//	go test ./loadtest -cost -run TestCost -v  orders in a second and p99, beside the same service without sqlreq
//
// The last two print what they find of the service without sqlreq (byhand_test.go), and do not judge it. They run on
// Linux, with PostgreSQL's programs.
package loadtest
