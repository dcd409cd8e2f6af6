// Fake-gcs-server keeps objects as Google Cloud Storage does, and lacks what the crate object_store writes with: the XML API's PUT, only where
// nothing is yet (x-goog-if-generation-match), and its uploads in parts. This program adds that, and hands what is written on to fake-gcs-server
// by the JSON API, its condition as well. Its arguments are the address, and the directory with a directory for each bucket.
package main

import (
	"bytes"
	"crypto/md5"
	"crypto/rand"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/fsouza/fake-gcs-server/fakestorage"
)

type server struct {
	behind  http.Handler
	mutex   sync.Mutex
	uploads map[string]map[int][]byte
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	id := query.Get("uploadId")
	switch {
	case r.Method == http.MethodPost && query.Has("uploads"):
		s.begin(w)
	case r.Method == http.MethodPut && id != "":
		s.part(w, r, id)
	case r.Method == http.MethodPost && id != "":
		s.complete(w, r, id)
	case r.Method == http.MethodDelete && id != "":
		s.take(id)
		w.WriteHeader(http.StatusNoContent)
	case r.Method == http.MethodPut:
		s.put(w, r, r.Body)
	default:
		s.behind.ServeHTTP(w, r)
	}
}

// put writes an object, and answers with what tells its version or why there is none. Returns its ETag, if there is one.
func (s *server) put(w http.ResponseWriter, r *http.Request, content io.Reader) string {
	bucket, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	query := url.Values{"uploadType": {"media"}, "name": {name}}
	if generation := r.Header.Get("x-goog-if-generation-match"); generation != "" {
		query.Set("ifGenerationMatch", generation)
	}
	address := "/upload/storage/v1/b/" + url.PathEscape(bucket) + "/o?" + query.Encode()
	request, err := http.NewRequestWithContext(r.Context(), http.MethodPost, address, content)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return ""
	}
	request.Header.Set("Content-Type", r.Header.Get("Content-Type"))
	answer := httptest.NewRecorder()
	s.behind.ServeHTTP(answer, request)
	var made struct{ Etag, Generation string }
	if answer.Code != http.StatusOK {
		http.Error(w, answer.Body.String(), answer.Code)
		return ""
	}
	if err := json.Unmarshal(answer.Body.Bytes(), &made); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return ""
	}
	etag := strconv.Quote(made.Etag)
	w.Header().Set("ETag", etag)
	w.Header().Set("x-goog-generation", made.Generation)
	return etag
}

func (s *server) begin(w http.ResponseWriter) {
	id := rand.Text()
	s.mutex.Lock()
	s.uploads[id] = map[int][]byte{}
	s.mutex.Unlock()
	answer(w, struct {
		XMLName  xml.Name `xml:"InitiateMultipartUploadResult"`
		UploadID string   `xml:"UploadId"`
	}{UploadID: id})
}

func (s *server) part(w http.ResponseWriter, r *http.Request, id string) {
	content, err := io.ReadAll(r.Body)
	number, wrong := strconv.Atoi(r.URL.Query().Get("partNumber"))
	if err != nil || wrong != nil {
		http.Error(w, "no part", http.StatusBadRequest)
		return
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.uploads[id] == nil {
		http.Error(w, "NoSuchUpload", http.StatusNotFound)
		return
	}
	s.uploads[id][number] = content
	w.Header().Set("ETag", etag(content))
}

func (s *server) complete(w http.ResponseWriter, r *http.Request, id string) {
	var list struct {
		Part []struct {
			PartNumber int
			ETag       string
		}
	}
	if err := xml.NewDecoder(r.Body).Decode(&list); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	parts := s.take(id)
	if parts == nil {
		http.Error(w, "NoSuchUpload", http.StatusNotFound)
		return
	}
	var whole bytes.Buffer
	for _, part := range list.Part {
		content, isThere := parts[part.PartNumber]
		if !isThere || part.ETag != etag(content) {
			http.Error(w, "InvalidPart", http.StatusBadRequest)
			return
		}
		whole.Write(content)
	}
	if etag := s.put(w, r, &whole); etag != "" {
		answer(w, struct {
			XMLName xml.Name `xml:"CompleteMultipartUploadResult"`
			ETag    string
		}{ETag: etag})
	}
}

// take ends an upload.
func (s *server) take(id string) map[int][]byte {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	parts := s.uploads[id]
	delete(s.uploads, id)
	return parts
}

func etag(content []byte) string {
	return fmt.Sprintf("%q", fmt.Sprintf("%x", md5.Sum(content)))
}

func answer(w http.ResponseWriter, content any) {
	w.Header().Set("Content-Type", "application/xml")
	if err := xml.NewEncoder(w).Encode(content); err != nil {
		log.Print(err)
	}
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: fake-gcs-server ADDRESS DIRECTORY")
	}
	address, directory := os.Args[1], os.Args[2]
	behind, err := fakestorage.NewServerWithOptions(fakestorage.Options{
		StorageRoot: directory, PublicHost: address, NoListener: true, Writer: os.Stderr,
	})
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.ListenAndServe(address, &server{behind: behind.HTTPHandler(), uploads: map[string]map[int][]byte{}}))
}
