// Package ports has real kinds of programs, each as it is and after its port to sqlreq, and tests that send the same
// requests to both editions: normal answers are the same byte by byte, and what goes wrong before goes right after it.
// What a port took, in lines, is counted here and told in docs/migration.md.
//
//   - dials: a service with a transaction in each method of its store, in the shape of wtf
//   - messages: gin, gorm and a pool of one connection, in the shape of Gotify
//   - sales: a framework of its own with a transaction by hand, in the shape of Ardan Labs' service
package ports
