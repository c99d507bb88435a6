package dials

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
)

// Server answers requests. Its handlers are the same before and after the port.
type Server struct {
	UserService       UserService
	DialService       DialService
	MembershipService MembershipService

	// HandleForm handles "POST /dials/new".
	HandleForm func(w http.ResponseWriter, r *http.Request)
}

// Handler returns the routes.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /dials", s.handleDialIndex)
	mux.HandleFunc("POST /dials", s.handleDialCreate)
	mux.HandleFunc("POST /dials/new", s.HandleForm)
	mux.HandleFunc("GET /dials/{id}", withID(s.handleDialView))
	mux.HandleFunc("DELETE /dials/{id}", withID(s.handleDialDelete))
	mux.HandleFunc("POST /dials/{id}/membership", withID(s.handleJoin))
	mux.HandleFunc("PUT /dials/{id}/membership", withID(s.handleSetValue))
	mux.HandleFunc("DELETE /dial-memberships/{id}", withID(s.handleLeave))
	return s.authenticate(mux)
}

// authenticate loads the user by an API key.
func (s *Server) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		user, err := s.UserService.FindUserByKey(r.Context(), key)
		if err != nil {
			WriteError(w, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(NewContextWithUser(r.Context(), user)))
	})
}

func withID(handle func(w http.ResponseWriter, r *http.Request, id int)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.Atoi(r.PathValue("id"))
		if err != nil {
			WriteError(w, Errorf(EINVALID, "Invalid ID format"))
			return
		}
		handle(w, r, id)
	}
}

func (s *Server) handleDialIndex(w http.ResponseWriter, r *http.Request) {
	dials, err := s.DialService.FindDials(r.Context())
	answer(w, http.StatusOK, dials, err)
}

func (s *Server) handleDialView(w http.ResponseWriter, r *http.Request, id int) {
	dial, err := s.DialService.FindDialByID(r.Context(), id)
	if err != nil {
		WriteError(w, err)
		return
	}
	dial.Memberships, err = s.MembershipService.FindMemberships(r.Context(), id)
	answer(w, http.StatusOK, dial, err)
}

// handleDialCreate creates a dial and sets it, as the program for the command line does by two requests.
func (s *Server) handleDialCreate(w http.ResponseWriter, r *http.Request) {
	var dial Dial
	if err := json.NewDecoder(r.Body).Decode(&dial); err != nil {
		WriteError(w, Errorf(EINVALID, "Invalid JSON body"))
		return
	}
	answer(w, http.StatusCreated, &dial, s.Create(r.Context(), &dial))
}

// Create calls two methods of the store.
func (s *Server) Create(ctx context.Context, dial *Dial) error {
	value := dial.Value
	if err := s.DialService.CreateDial(ctx, dial); err != nil {
		return err
	}
	if value == 0 {
		return nil
	}
	return s.DialService.SetDialMembershipValue(ctx, dial.ID, value)
}

func (s *Server) handleDialDelete(w http.ResponseWriter, r *http.Request, id int) {
	answer(w, http.StatusOK, struct{}{}, s.DialService.DeleteDial(r.Context(), id))
}

func (s *Server) handleJoin(w http.ResponseWriter, r *http.Request, id int) {
	membership := &Membership{DialID: id}
	answer(w, http.StatusCreated, membership, s.MembershipService.CreateMembership(r.Context(), membership))
}

func (s *Server) handleSetValue(w http.ResponseWriter, r *http.Request, id int) {
	var body struct{ Value int }
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		WriteError(w, Errorf(EINVALID, "Invalid JSON body"))
		return
	}
	answer(w, http.StatusOK, struct{}{}, s.DialService.SetDialMembershipValue(r.Context(), id, body.Value))
}

func (s *Server) handleLeave(w http.ResponseWriter, r *http.Request, id int) {
	answer(w, http.StatusOK, struct{}{}, s.MembershipService.DeleteMembership(r.Context(), id))
}

func answer(w http.ResponseWriter, status int, v any, err error) {
	if err != nil {
		WriteError(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

var statuses = map[string]int{
	EINVALID: http.StatusBadRequest, EUNAUTHORIZED: http.StatusUnauthorized, ENOTFOUND: http.StatusNotFound,
	ECONFLICT: http.StatusConflict, EINTERNAL: http.StatusInternalServerError,
}

// WriteError answers an error.
func WriteError(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(statuses[ErrorCode(err)])
	_ = json.NewEncoder(w).Encode(map[string]string{"error": ErrorMessage(err)})
}
