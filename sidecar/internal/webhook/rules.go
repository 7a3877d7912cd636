package webhook

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
)

// deniedError is why an endpoint may not be called: the rule, and the variable that changes it.
type deniedError struct{ text string }

func (e *deniedError) Error() string { return e.text }

func denied(format string, args ...any) error { return &deniedError{fmt.Sprintf(format, args...)} }

// rules say which addresses may be called.
type rules struct {
	allow, deny  []Target
	edge         []Target // networks
	edgeNames    []string // interfaces
	edgeAuto     bool
	requireHTTPS bool
	proxied      bool // nothing is looked up here: the proxy does it
	networks     func() ([]Network, error)
}

func newRules(o Options) (*rules, error) {
	r := &rules{allow: o.Allow, deny: o.Deny, requireHTTPS: o.RequireHTTPS, networks: o.Networks}
	if r.networks == nil {
		r.networks = remembered(networksOf)
	}
	return r, r.setEdge(o.Edge)
}

// setEdge reads WEBHOOK_EDGE.
func (r *rules) setEdge(entries []string) error {
	for _, entry := range entries {
		entry = strings.TrimSpace(entry)
		var t Target
		switch err := t.UnmarshalText([]byte(entry)); {
		case entry == "auto":
			r.edgeAuto = true
		case entry == "none" || entry == "":
		case err == nil && t.prefix.IsValid():
			r.edge = append(r.edge, t)
		case strings.ContainsAny(entry, "/: "):
			return fmt.Errorf("WEBHOOK_EDGE has %q; it must be auto, or interfaces (eth0) and networks (10.0.0.0/8) with commas between, or none", entry)
		default:
			r.edgeNames = append(r.edgeNames, entry)
		}
	}
	r.edgeAuto = r.edgeAuto || len(entries) == 0
	return nil
}

// CheckEdge tells whether entries can be those of WEBHOOK_EDGE.
func CheckEdge(entries []string) error { return new(rules).setEdge(entries) }

// dial connects to an endpoint. The address is checked once it is known and before anything is
// sent to it, so that no answer of a name server gets round the rules.
func (r *rules) dial(ctx context.Context, d net.Dialer, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddr(host); err != nil {
		if err := r.checkName(host); err != nil {
			return nil, err
		}
	}
	d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
		resolved, err := netip.ParseAddrPort(address)
		if err != nil {
			return denied("%s is no address of TCP", address) // and nothing else is to be called
		}
		return r.check(resolved.Addr(), host)
	}
	return d.DialContext(ctx, network, address)
}

// checkName denies what no address could allow. It spares looking the name up.
func (r *rules) checkName(host string) error {
	host = canonical(host)
	rule, deny := r.deniedName(host)
	if !deny || r.allowsName(host) {
		return nil
	}
	if !r.proxied && slices.ContainsFunc(r.allow, func(t Target) bool { return t.prefix.IsValid() }) {
		return nil // it may have an address that is allowed
	}
	return denied("%s is denied by %s in WEBHOOK_DENY; WEBHOOK_ALLOW can make an exception", host, rule)
}

func canonical(host string) string { return strings.ToLower(strings.TrimSuffix(host, ".")) }

func (r *rules) allowsName(host string) bool {
	return slices.ContainsFunc(r.allow, func(t Target) bool { return t.matchesHost(host) })
}

func (r *rules) deniedName(host string) (Target, bool) {
	i := slices.IndexFunc(r.deny, func(t Target) bool { return t.matchesHost(host) })
	if i < 0 {
		return Target{}, false
	}
	return r.deny[i], true
}

// check says whether an address may be called that a host's name (or the address itself, as text)
// stands for. WEBHOOK_ALLOW makes exceptions to WEBHOOK_DENY; only as an address it also does for
// this machine itself, as a name can come to stand for anything.
func (r *rules) check(addr netip.Addr, host string) error {
	forms := formsOf(addr)
	shown := forms[0].String()
	if len(forms) > 1 {
		shown += " (" + forms[len(forms)-1].String() + ")"
	}
	if host = canonical(host); host != forms[0].String() && host != addr.String() {
		shown = host + " is " + shown + ", which"
	}
	for _, form := range forms {
		if what := special(form); what != "" {
			return denied("%s is %s; no setting allows it", shown, what)
		}
	}
	networks, err := r.networks()
	if err != nil {
		return denied("%s may be in a network of this machine, which cannot be told: %v", shown, err)
	}
	for _, form := range forms {
		if n, ok := r.inner(form, networks); ok {
			return denied("%s is in %v, a network of this machine (%s) that is not its edge; WEBHOOK_EDGE says which ones are", shown, n.Address.Masked(), n.Interface)
		}
	}
	matches := func(list []Target) (Target, bool) {
		for _, t := range list {
			if slices.ContainsFunc(forms, t.matches) {
				return t, true
			}
		}
		return Target{}, false
	}
	if _, ok := matches(r.allow); ok {
		return nil
	}
	for _, form := range forms {
		if form.IsLoopback() {
			return denied("%s is a loopback address; WEBHOOK_ALLOW=%v would allow it", shown, netip.PrefixFrom(form, form.BitLen()))
		}
		if slices.ContainsFunc(networks, func(n Network) bool { return n.Address.Addr() == form }) {
			return denied("%s is an address of this machine itself; WEBHOOK_ALLOW=%v would allow it", shown, netip.PrefixFrom(form, form.BitLen()))
		}
	}
	if r.allowsName(host) {
		return nil
	}
	rule, deny := matches(r.deny)
	if !deny {
		rule, deny = r.deniedName(host)
	}
	if deny {
		return denied("%s is denied by %v in WEBHOOK_DENY; WEBHOOK_ALLOW can make an exception", shown, rule)
	}
	return nil
}

// inner tells whether an address is in a network of this machine that deliveries may not use. Of
// networks that overlap the smallest one counts, and the edge where they are the same.
func (r *rules) inner(addr netip.Addr, networks []Network) (Network, bool) {
	var closest Network
	var isEdge bool
	for _, n := range networks {
		prefix := n.Address.Masked()
		if n.Address.Addr().IsLoopback() || !prefix.Contains(addr) {
			continue
		}
		edge := r.isEdge(n)
		if bits := n.Address.Bits(); !closest.Address.IsValid() || bits > closest.Address.Bits() || bits == closest.Address.Bits() && edge {
			closest, isEdge = n, edge
		}
	}
	return closest, closest.Address.IsValid() && !isEdge
}

func (r *rules) isEdge(n Network) bool {
	return r.edgeAuto && n.Default || slices.Contains(r.edgeNames, n.Interface) ||
		slices.ContainsFunc(r.edge, func(t Target) bool {
			return t.matches(n.Address.Addr()) && t.prefix.Bits() <= n.Address.Bits()
		})
}

// metadata are the addresses at which clouds tell a machine its secrets, besides 169.254.0.0/16.
var metadata = []netip.Prefix{
	netip.MustParsePrefix("fd00:ec2::/32"),      // Amazon
	netip.MustParsePrefix("fd20:ce::254/128"),   // Google
	netip.MustParsePrefix("100.100.100.200/32"), // Alibaba
	netip.MustParsePrefix("168.63.129.16/32"),   // Azure
	netip.MustParsePrefix("192.0.0.192/32"),     // Oracle
}

var (
	thisNetwork   = netip.MustParsePrefix("0.0.0.0/8")
	reservedSpace = netip.MustParsePrefix("240.0.0.0/4")
)

// special says what an address is that is never an endpoint's; "" is any other one.
func special(addr netip.Addr) string {
	switch {
	case addr.IsUnspecified() || thisNetwork.Contains(addr):
		return "an unspecified address"
	case addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "the broadcast address"
	case addr.IsMulticast():
		return "a multicast address"
	case reservedSpace.Contains(addr):
		return "in 240.0.0.0/4, which is reserved"
	case addr == netip.AddrFrom4([4]byte{169, 254, 169, 254}), slices.ContainsFunc(metadata, func(p netip.Prefix) bool { return p.Contains(addr) }):
		return "where a cloud tells this machine its secrets"
	case addr.IsLinkLocalUnicast():
		return "a link-local address"
	}
	return ""
}

// formsOf gives an address, and the IPv4 address that it stands for, where there is a way from one
// to the other: what is checked is where the connection ends.
func formsOf(addr netip.Addr) []netip.Addr {
	addr = addr.WithZone("")
	if addr.Is4In6() {
		addr = addr.Unmap() // the same address in another form: there is no more to it
	}
	if addr.Is4() {
		return []netip.Addr{addr}
	}
	b := addr.As16()
	v4 := func(i, j, k, l int) []netip.Addr {
		return []netip.Addr{addr, netip.AddrFrom4([4]byte{b[i], b[j], b[k], b[l]})}
	}
	switch {
	case nat64.Contains(addr):
		return v4(12, 13, 14, 15)
	case nat64Local.Contains(addr):
		// RFC 6052, with a prefix of 96 bits or of 48: whichever leads somewhere.
		forms := []netip.Addr{addr}
		for _, f := range []netip.Addr{v4(12, 13, 14, 15)[1], v4(6, 7, 9, 10)[1]} {
			if !thisNetwork.Contains(f) && !reservedSpace.Contains(f) {
				forms = append(forms, f)
			}
		}
		return forms
	case sixToFour.Contains(addr):
		return v4(2, 3, 4, 5)
	case teredo.Contains(addr):
		for i := 12; i < 16; i++ {
			b[i] ^= 0xff
		}
		return v4(12, 13, 14, 15)
	case compatible.Contains(addr) && !addr.IsUnspecified() && !addr.IsLoopback():
		return v4(12, 13, 14, 15)
	}
	return []netip.Addr{addr}
}

// Networks of IPv6 that stand for IPv4.
var (
	nat64      = netip.MustParsePrefix("64:ff9b::/96")
	nat64Local = netip.MustParsePrefix("64:ff9b:1::/48")
	sixToFour  = netip.MustParsePrefix("2002::/16")
	teredo     = netip.MustParsePrefix("2001::/32")
	compatible = netip.MustParsePrefix("::/96")
)
