package server

// operations is every request there is.
var operations map[string]operation

func init() {
	const exec, admin = "exec", "admin"
	operations = map[string]operation{
		"ping": {"", true, (*Server).ping},

		"run":    {exec, false, (*Server).run},
		"exec":   {exec, false, (*Server).exec},
		"output": {exec, false, (*Server).output},
		"stdin":  {exec, false, (*Server).stdin},
		"wait":   {exec, true, (*Server).wait}, // of p-main it is quiet; of any other, the process itself is activity
		"signal": {exec, false, (*Server).signal},
		"resize": {exec, false, (*Server).resize},
		"ps":     {exec, false, (*Server).ps},

		"configure": {admin, false, (*Server).configure},
		"idle":      {admin, true, (*Server).idle},
		"shutdown":  {admin, true, (*Server).shutdown},
	}
}
