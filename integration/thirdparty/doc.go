// Package thirdparty runs programs that others wrote through sqlreq: websocket libraries, file servers, proxies,
// routers, ORMs. Most run unchanged; for gin, echo, gorm and sqlx there are the modules in adapters/. It has no code but
// tests.
package thirdparty
