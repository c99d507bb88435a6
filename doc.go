// Package sqlreq gives every net/http request its own database/sql transaction.
package sqlreq
