package store

import (
	"fmt"
	"net/http"
	"strconv"

	"github.com/sqlreq/sqlreq/integration/ports/dials"
)

// Form handles the form for a new dial. A browser that has sent what is not valid is shown the form again, with the
// status 200.
type Form struct{ server *dials.Server }

func (f *Form) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	dial := dials.Dial{Name: r.FormValue("name")}
	dial.Value, _ = strconv.Atoi(r.FormValue("value"))
	err := f.server.Create(r.Context(), &dial)
	switch {
	case err != nil && dials.ErrorCode(err) == dials.EINTERNAL:
		dials.WriteError(w, err)
	case err != nil:
		fmt.Fprintf(w, "<form>%s <input name=name value=%q></form>\n", dials.ErrorMessage(err), dial.Name)
	default:
		http.SetCookie(w, &http.Cookie{Name: "flash", Value: "created"})
		http.Redirect(w, r, fmt.Sprintf("/dials/%d", dial.ID), http.StatusFound)
	}
}
