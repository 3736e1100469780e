package gateway

import "testing"

func TestTargets(t *testing.T) {
	for path, wanted := range map[string]target{
		"/t/sb-a1/8080/x":  {"sb-a1", 8080, "/t/sb-a1/8080"},
		"/t/sb-a1/8080":    {"sb-a1", 8080, "/t/sb-a1/8080"},
		"/t/sb-a1/65535/":  {"sb-a1", 65535, "/t/sb-a1/65535"},
		"/t/sb-a1/65536/":  {},
		"/t/sb-a1/08/":     {},
		"/t/sb-a1/80x/":    {},
		"/t/sb-A/80/":      {},
		"/t/sb-/80/":       {},
		"/t/sb-a1":         {},
		"/x/t/sb-a1/80/":   {},
		"//t/sb-a1/80/":    {},
		"/t/sb-a1/80%2F/x": {},
	} {
		found, ok := targetOfPath(path)
		if ok != (wanted != target{}) || (ok && found != wanted) {
			t.Errorf("%s: %v %v", path, found, ok)
		}
	}
	for host, wanted := range map[string]target{
		"80-sb-a.t.example":      {"sb-a", 80, ""},
		"80-SB-A.T.example:8443": {"sb-a", 80, ""},
		"80-sb-a.t.example.":     {"sb-a", 80, ""},
		"80-sb-a.t.example.evil": {},
		"80-sb-a.x.t.example":    {},
		"0-sb-a.t.example":       {},
		"80-a.t.example":         {},
		"t.example":              {},
	} {
		found, ok := targetOfHost(host, "t.example")
		if ok != (wanted != target{}) || (ok && found != wanted) {
			t.Errorf("%s: %v %v", host, found, ok)
		}
	}
}

func TestLocationsStayBelowThePrefix(t *testing.T) {
	dest := target{"sb-a", 8080, "/t/sb-a/8080"}
	for given, wanted := range map[string]string{
		"/x?a=b#c":                             "/t/sb-a/8080/x?a=b#c",
		"/t/sb-a/8080/x":                       "/t/sb-a/8080/x",
		"/t/sb-a/8080x":                        "/t/sb-a/8080/t/sb-a/8080x",
		"x/y":                                  "x/y",
		"http://api:1/x":                       "/t/sb-a/8080/x",
		"http://api:1":                         "/t/sb-a/8080/",
		"//API:1/x":                            "/t/sb-a/8080/x",
		"http://localhost:8080/x":              "/t/sb-a/8080/x",
		"http://localhost:8080//evil.example/": "/t/sb-a/8080//evil.example/",
		"https://elsewhere.example/x":          "https://elsewhere.example/x",
		"//elsewhere.example/x":                "//elsewhere.example/x",
		"mailto:a@b":                           "mailto:a@b",
		"http://[bad":                          "http://[bad",
	} {
		expect(t, given, rewriteLocation(given, dest, "api:1"), wanted)
	}
}

func TestCookiesStayBelowThePrefix(t *testing.T) {
	for given, wanted := range map[string]string{
		"sid=1; Domain=x.example; Path=/app; HttpOnly": "sid=1; Path=/t/p/app; HttpOnly",
		"sid=1; path=/t/p/app":                         "sid=1; Path=/t/p/app",
		"sid=1; Path=relative":                         "sid=1; Path=/t/p/",
		"sid=1":                                        "sid=1",
		"shoal_tunnel=mine; Path=/":                    "",
		"=shoal_tunnel=mine; Path=/":                   "",
		" = shoal_session_8000=mine":                   "",
	} {
		expect(t, given, rewriteCookie(given, "/t/p"), wanted)
	}
	expect(t, "of a host of its own", rewriteCookie("a=1; DOMAIN=x; Path=/y", ""), "a=1; Path=/y")
}

func FuzzPaths(f *testing.F) {
	f.Add("/t/sb-a/80/x")
	f.Add("/t/sb-a/80")
	f.Fuzz(func(t *testing.T, path string) {
		if found, ok := targetOfPath(path); ok && !isBelow(path, found.prefix) {
			t.Fatalf("%q: %v", path, found)
		}
		if fit := escapePath(path); fit == "" || escapePath(fit) != fit {
			t.Fatalf("%q becomes %q", path, fit)
		}
	})
}
