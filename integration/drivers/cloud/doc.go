// Package cloud has the drivers whose build is long, and two wrappers: those of services that are rented.
package cloud
