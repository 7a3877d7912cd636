package webhook

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestTargets(t *testing.T) {
	for text, want := range map[string]string{
		"10.1.2.3/8": "10.0.0.0/8", "10.1.2.3": "10.1.2.3/32", "::1": "::1/128", "FD00::/8": "fd00::/8", "::ffff:10.1.2.3": "10.1.2.3/32", " none ": "none", "": "none",
		"Shop.Example.com": "shop.example.com", "*.example.com": "*.example.com", "*": "*", "webshop": "webshop", "3com.net": "3com.net",
	} {
		var got Target
		if err := got.UnmarshalText([]byte(text)); err != nil || got.String() != want {
			t.Errorf("%q is %v, %v; want %s", text, got, err, want)
		}
		written, _ := got.MarshalText()
		var again Target
		if err := again.UnmarshalText(written); err != nil || again != got {
			t.Errorf("%q is %v after it was written and read, %v", text, again, err)
		}
	}
	for _, text := range []string{"10.0.0.0/33", "10.0.0", "10.0.0.256", "1234", "a*.com", "*.", "a..b", "http://webshop", "webshop:80", "a b", "fe80::1%eth0", "*.10", "ä.com", long(64), ".com"} {
		var got Target
		if err := got.UnmarshalText([]byte(text)); err == nil || !strings.Contains(err.Error(), "is neither a network (10.0.0.0/8)") {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
	if err := new(Target).UnmarshalText([]byte("::ffff:10.0.0.0/104")); err == nil || !strings.Contains(err.Error(), "write it as IPv4") {
		t.Errorf("a mapped network: %v", err)
	}
	for pattern, hosts := range map[string]struct{ yes, no []string }{
		"example.com":   {[]string{"example.com"}, []string{"a.example.com", "xexample.com", ""}},
		"*.example.com": {[]string{"a.example.com", "a.b.example.com"}, []string{"example.com", "xexample.com", "a.example.com.evil"}},
		"*":             {[]string{"webshop", "a.b", "10.0.0.1"}, nil},
		"none":          {nil, []string{"none", ""}},
		"10.0.0.0/8":    {nil, []string{"10.0.0.0/8", "10.0.0.1"}},
	} {
		one := targets(t, pattern)[0]
		for _, host := range hosts.yes {
			if !one.matchesHost(host) {
				t.Errorf("%s is not matched by %s", host, pattern)
			}
		}
		for _, host := range hosts.no {
			if one.matchesHost(host) {
				t.Errorf("%s is matched by %s", host, pattern)
			}
		}
	}
}

func TestWhereDeliveriesMayGo(t *testing.T) {
	const always = "no setting allows it"
	for name, c := range map[string]struct {
		allow, deny, edge []string
		answers           map[string]string // by "address" or "host=address"; "" is allowed
	}{
		"by default": {nil, nil, nil, map[string]string{
			"203.0.113.9": "", "2001:4860::1": "", "10.1.2.3": "", "192.168.1.1": "", "172.16.0.1": "", "100.64.0.1": "", "fd12::1": "", "webshop=172.20.0.9": "",
			"127.0.0.1":              "127.0.0.1 is a loopback address; WEBHOOK_ALLOW=127.0.0.1/32 would allow it",
			"localhost=::1":          "localhost is ::1, which is a loopback address; WEBHOOK_ALLOW=::1/128 would allow it",
			"127.8.8.8":              "is a loopback address",
			"172.20.0.5":             "172.20.0.5 is an address of this machine itself; WEBHOOK_ALLOW=172.20.0.5/32 would allow it",
			"kafka=172.21.0.9":       "kafka is 172.21.0.9, which is in 172.21.0.0/16, a network of this machine (eth1) that is not its edge; WEBHOOK_EDGE says which ones are",
			"172.21.0.5":             "is not its edge",
			"fd00:21::9":             "fd00:21::9 is in fd00:21::/64, a network of this machine (eth1)",
			"169.254.1.1":            "is a link-local address; " + always,
			"fe80::1":                "is a link-local address; " + always,
			"fe80::1%eth0":           "is a link-local address; " + always,
			"169.254.169.254":        "is where a cloud tells this machine its secrets; " + always,
			"fd00:ec2::254":          "tells this machine its secrets",
			"fd20:ce::254":           "tells this machine its secrets",
			"100.100.100.200":        "tells this machine its secrets",
			"168.63.129.16":          "tells this machine its secrets",
			"192.0.0.192":            "tells this machine its secrets",
			"0.0.0.0":                "is an unspecified address; " + always,
			"0.1.2.3":                "is an unspecified address",
			"::":                     "is an unspecified address",
			"255.255.255.255":        "is the broadcast address; " + always,
			"224.0.0.1":              "is a multicast address; " + always,
			"239.255.255.255":        "is a multicast address",
			"ff02::1":                "is a multicast address",
			"240.0.0.1":              "is in 240.0.0.0/4, which is reserved",
			"shop=::ffff:127.0.0.1":  "shop is 127.0.0.1, which is a loopback address",
			"::ffff:169.254.169.254": "tells this machine its secrets",
			"::ffff:172.21.0.9":      "is not its edge",
			"::ffff:203.0.113.9":     "",
			// What stands for an address of IPv4, but for mapped ones, is shown with it.
			"64:ff9b::a9fe:a9fe":                   "64:ff9b::a9fe:a9fe (169.254.169.254) is where a cloud tells this machine its secrets",
			"64:ff9b:1:cb00:71:900::":              "",
			"64:ff9b::127.0.0.1":                   "is a loopback address",
			"64:ff9b::203.0.113.9":                 "",
			"64:ff9b:1::169.254.169.254":           "tells this machine its secrets",
			"64:ff9b:1::203.0.113.9":               "",
			"64:ff9b:1:a9fe:a9:fe00::":             "tells this machine its secrets",
			"2002:a9fe:a9fe::1":                    "tells this machine its secrets",
			"2002:7f00:1::":                        "is a loopback address",
			"2002:cb00:7109::1":                    "",
			"2001:0:4136:e378:8000:63bf:80ff:fffe": "2001:0:4136:e378:8000:63bf:80ff:fffe (127.0.0.1) is a loopback address",
			"::169.254.169.254":                    "tells this machine its secrets",
			"::127.0.0.1":                          "is a loopback address",
		}},
		"what is allowed": {[]string{"127.0.0.0/8", "172.20.0.5", "shop.example.com"}, []string{"10.0.0.0/8", "203.0.113.0/24", "*.example.com"}, nil, map[string]string{
			"127.0.0.1": "", "::ffff:127.0.0.1": "", "172.20.0.5": "", "::1": "is a loopback address",
			"10.1.2.3":                     "10.1.2.3 is denied by 10.0.0.0/8 in WEBHOOK_DENY; WEBHOOK_ALLOW can make an exception",
			"64:ff9b::10.1.2.3":            "is denied by 10.0.0.0/8",
			"shop=203.0.113.9":             "shop is 203.0.113.9, which is denied by 203.0.113.0/24 in WEBHOOK_DENY",
			"shop.example.com=203.0.113.9": "", "shop.example.com=198.51.100.1": "", "SHOP.example.com.=10.0.0.1": "",
			"other.example.com=198.51.100.1": "is denied by *.example.com",
			"other.example.com=127.0.0.1":    "", // an address that is allowed is, whatever it is called
			// A name can come to stand for anything.
			"shop.example.com=::1":             "is a loopback address",
			"shop.example.com=172.21.0.9":      "is not its edge",
			"shop.example.com=169.254.169.254": always,
		}},
		"nothing but": {[]string{"10.1.0.0/16", "*.example.com"}, []string{"*"}, nil, map[string]string{
			"10.1.2.3": "", "webshop=10.1.2.3": "", "a.example.com=198.51.100.1": "", "198.51.100.1": "is denied by * in WEBHOOK_DENY", "webshop=198.51.100.1": "is denied by *", "127.0.0.1": "is a loopback address",
		}},
		"allowed in vain": {[]string{"0.0.0.0/0", "::/0", "*"}, nil, nil, map[string]string{
			"127.0.0.1": "", "::1": "", "172.20.0.5": "", "172.21.0.9": "is not its edge", "169.254.169.254": always, "224.0.0.1": always, "fe80::1": always, "64:ff9b::a9fe:a9fe": always,
		}},
		"closed to private ranges": {nil, []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"}, nil, map[string]string{
			"192.168.1.1": "is denied by 192.168.0.0/16", "webshop=172.20.0.9": "is denied by 172.16.0.0/12", "fd12::1": "is denied by fc00::/7", "203.0.113.9": "",
		}},
		"an edge by its interface": {nil, nil, []string{"eth1"}, map[string]string{"172.21.0.9": "", "fd00:21::9": "", "172.20.0.9": "is in 172.20.0.0/16, a network of this machine (eth0)", "172.21.0.5": "is an address of this machine itself"}},
		"an edge by its network":   {nil, nil, []string{"auto", "172.21.0.0/16"}, map[string]string{"172.21.0.9": "", "fd00:21::9": "is not its edge", "172.20.0.9": ""}},
		"a network within it":      {nil, nil, []string{"172.21.0.0/24"}, map[string]string{"172.21.0.9": "is not its edge"}},
		"a network around it":      {nil, nil, []string{"172.16.0.0/12"}, map[string]string{"172.21.0.9": "", "172.20.0.9": ""}},
		"no edge":                  {nil, nil, []string{"none"}, map[string]string{"172.20.0.9": "is not its edge", "203.0.113.9": ""}},
	} {
		r, err := newRules(Options{Allow: targets(t, c.allow...), Deny: targets(t, c.deny...), Edge: c.edge, Networks: testNetworks})
		if err != nil {
			t.Fatal(err)
		}
		for text, want := range c.answers {
			host, address, named := strings.Cut(text, "=")
			if !named {
				address = text
			}
			err := r.check(netip.MustParseAddr(address), host)
			switch {
			case want == "" && err != nil:
				t.Errorf("%s: %s: %v", name, text, err)
			case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
				t.Errorf("%s: %s: the error is %v; want %q", name, text, err, want)
			case err != nil && len(err.Error()) > maxErrBytes:
				t.Errorf("%s: %s: the error has %d bytes: %v", name, text, len(err.Error()), err)
			}
		}
	}
}

func TestNamesAreDeniedBeforeTheyAreLookedUp(t *testing.T) {
	for name, c := range map[string]struct {
		allow, deny []string
		want        map[string]bool // allowed
	}{
		"no rules":      {nil, nil, map[string]bool{"webshop": true}},
		"denied":        {nil, []string{"*.example.com", "evil"}, map[string]bool{"webshop": true, "a.example.com": false, "A.Example.Com.": false, "EVIL": false}},
		"but one":       {[]string{"a.example.com"}, []string{"*.example.com"}, map[string]bool{"a.example.com": true, "b.example.com": false}},
		"or an address": {[]string{"10.0.0.0/8"}, []string{"*"}, map[string]bool{"webshop": true}}, // it may have one
	} {
		r, err := newRules(Options{Allow: targets(t, c.allow...), Deny: targets(t, c.deny...), Networks: testNetworks})
		if err != nil {
			t.Fatal(err)
		}
		for host, want := range c.want {
			if err := r.checkName(host); (err == nil) != want {
				t.Errorf("%s: %s: %v", name, host, err)
			}
		}
	}
}

func TestOfNetworksThatOverlapTheSmallestCounts(t *testing.T) {
	overlap := func() ([]Network, error) {
		return []Network{
			{Interface: "wlan0", Address: netip.MustParsePrefix("192.168.1.6/24")},
			{Interface: "eth0", Address: netip.MustParsePrefix("192.168.1.5/24"), Default: true},
			{Interface: "kafka0", Address: netip.MustParsePrefix("192.168.1.65/28")},
			{Interface: "vpn0", Address: netip.MustParsePrefix("192.168.0.1/16")},
		}, nil
	}
	r, err := newRules(Options{Networks: overlap})
	if err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]string{"192.168.1.9": "", "192.168.1.66": "(kafka0)", "192.168.2.1": "(vpn0)"} {
		err := r.check(netip.MustParseAddr(address), address)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v; want %q", address, err, want)
		}
	}
}

func TestNothingIsCalledWhileNetworksAreNotKnown(t *testing.T) {
	r, err := newRules(Options{Allow: targets(t, "*"), Networks: func() ([]Network, error) { return nil, errors.New("no netlink") }})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.check(netip.MustParseAddr("203.0.113.9"), "webshop"); err == nil || !strings.Contains(err.Error(), "which cannot be told: no netlink") {
		t.Errorf("the error is %v", err)
	}
}

func TestSettingsThatCannotBeRead(t *testing.T) {
	for name, o := range map[string]Options{
		`WEBHOOK_EDGE has "10.0.0.0/64"; it must be auto`:              {Edge: []string{"10.0.0.0/64"}},
		`WEBHOOK_EDGE has "eth0 eth1"; it must be auto`:                {Edge: []string{"eth0 eth1"}},
		`WEBHOOK_PROXY is "proxy:3128"; it must be the URL of a proxy`: {Proxy: "proxy:3128"},
		"WEBHOOK_PROXY has a user or a password":                       {Proxy: "http://user:pw@proxy:3128"},
	} {
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%+v: the error is %v; want %q", o, err, name)
		}
	}
}

// What this machine says of its networks, against what the standard library says of its addresses.
func TestNetworksAreThisMachines(t *testing.T) {
	networks, err := networksOf()
	if err != nil {
		t.Fatal(err)
	}
	loopback := func(n Network) bool { return n.Address.Addr().IsLoopback() && !n.Default }
	if !slices.ContainsFunc(networks, loopback) {
		t.Errorf("there is no loopback interface that is not the edge in %v", networks)
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		prefix, err := netip.ParsePrefix(a.String())
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(networks, func(n Network) bool { return n.Address == prefix }) {
			t.Errorf("%v is not among %v", prefix, networks)
		}
	}
	source := sourceTo("udp4", "192.0.2.1:9")
	for _, n := range networks {
		if n.Address.Addr() == source && !n.Default {
			t.Errorf("%v is where connections to the internet begin, and not the edge", n)
		}
	}
}

func TestNetworksAreRememberedForAWhile(t *testing.T) {
	asked, fail := 0, true
	ask := remembered(func() ([]Network, error) {
		asked++
		if fail {
			return nil, errors.New("no netlink")
		}
		return testNetworks()
	})
	if _, err := ask(); err == nil {
		t.Error("the error is lost")
	}
	fail = false
	for range 3 {
		if n, err := ask(); err != nil || len(n) == 0 {
			t.Errorf("%v, %v", n, err)
		}
	}
	if asked != 2 {
		t.Errorf("the machine was asked %d times; want 2: an error is not remembered, an answer is", asked)
	}
}

func FuzzCheckURL(f *testing.F) {
	for _, s := range []string{"http://webshop:8080/a?b", "https://[::ffff:127.0.0.1]/", "http://2130706433/", "http://0x7f.1/", "http://127.0.0.1.:80", "http://[fe80::1%25eth0]/", "http:\\\\x"} {
		f.Add(s)
	}
	s := newSender(f, func(o *Options) { o.Allow = nil })
	f.Fuzz(func(t *testing.T, url string) {
		if s.CheckURL(url) != nil {
			return
		}
		req, err := s.request(t.Context(), subscription(url), attempt(record("k", "v")))
		if err != nil {
			t.Fatalf("%q is accepted and cannot be called: %v", url, err)
		}
		if addr, err := netip.ParseAddr(req.URL.Hostname()); err == nil && (addr.Unmap().IsLoopback() || addr.IsLinkLocalUnicast()) {
			t.Errorf("%q is accepted", url)
		}
	})
}
