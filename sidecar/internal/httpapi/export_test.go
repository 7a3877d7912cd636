package httpapi

// Routes lists the methods and path patterns of the whole interface.
func Routes() (out [][2]string) {
	for _, rt := range (&Server{}).routes() {
		out = append(out, [2]string{rt.method, rt.path})
	}
	return out
}
