// Package browser looks at the examples as a person does: it starts them as processes, opens every page of them in
// Chromium, in windows of a desktop's and of a telephone's width, light and dark, and uses them by the keyboard alone.
//
// What is looked for is the table [Checks]. Each entry is a function that is itself tested with pages that are broken in
// one way each (checks_test.go), so that none is silently blind. The tests of the examples run all of them over whatever
// they find by following the links: a new page is checked without being named here.
//
// The same code makes the pictures of the README and of docs/:
//
//	go test -C integration/browser -run TestPictures . -pictures ../../docs
//
// It needs the program chromium, of the Debian package of that name. The rules for accessibility, contrast among them, are
// those of axe-core 4.14.1, whose file stands unchanged in testdata beside its license, the MPL-2.0.
package browser
