package webhook

import (
	"fmt"
	"net/netip"
	"strings"
)

// Target is an entry of WEBHOOK_ALLOW or WEBHOOK_DENY: addresses (10.1.0.0/16, 10.1.2.3), or names
// of hosts (shop.example.com, *.example.com for all below it, * for all). The zero Target is
// written "none", and nothing matches it.
type Target struct {
	prefix netip.Prefix
	host   string // in lower case
}

// UnmarshalText reads a Target.
func (t *Target) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	*t = Target{}
	if s == "none" || s == "" {
		return nil
	}
	if prefix, err := netip.ParsePrefix(s); err == nil {
		if prefix.Addr().Is4In6() {
			return fmt.Errorf("%q is an IPv4 network in the form of IPv6; write it as IPv4, such as 10.0.0.0/8", s)
		}
		t.prefix = prefix.Masked()
		return nil
	}
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		t.prefix = netip.PrefixFrom(addr, addr.BitLen())
		return nil
	}
	host := strings.ToLower(s)
	if !isHost(host) {
		return fmt.Errorf("%q is neither a network (10.0.0.0/8), nor an address, nor a host (shop.example.com, *.example.com, *)", s)
	}
	t.host = host
	return nil
}

// isHost tells whether s can be the name of a host, or names below one.
func isHost(s string) bool {
	if s == "*" {
		return true
	}
	digits := true // all numbers: an address with a mistake in it
	for label := range strings.SplitSeq(strings.TrimPrefix(s, "*."), ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for i := range len(label) {
			switch c := label[i]; {
			case c >= '0' && c <= '9':
			case c >= 'a' && c <= 'z', c == '-', c == '_':
				digits = false
			default:
				return false
			}
		}
	}
	return !digits
}

// MarshalText writes a Target as it is read.
func (t Target) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// String writes a Target as it is read.
func (t Target) String() string {
	switch {
	case t.prefix.IsValid():
		return t.prefix.String()
	case t.host != "":
		return t.host
	}
	return "none"
}

// matchesHost tells whether a host is meant by its name.
func (t Target) matchesHost(name string) bool {
	switch below, ok := strings.CutPrefix(t.host, "*"); {
	case t.host == "":
		return false
	case ok:
		return strings.HasSuffix(name, below) // below has its dot: *.example.com is not example.com
	}
	return name == t.host
}

// matches tells whether an address is meant.
func (t Target) matches(addr netip.Addr) bool { return t.prefix.IsValid() && t.prefix.Contains(addr) }
