package webhook

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// Network is a network that an interface of this machine is in.
type Network struct {
	Interface string
	Address   netip.Prefix // the interface's address, with as many bits as the network has
	Default   bool         // the interface is that of the default route
}

// networksOf asks the machine. The interface of the default route is the one whose address
// a connection to the internet would have; nothing is sent to find out.
func networksOf() ([]Network, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	towardsInternet := []netip.Addr{sourceTo("udp4", "192.0.2.1:9"), sourceTo("udp6", "[2001:db8::1]:9")}
	var networks []Network
	for _, i := range interfaces {
		addresses, err := i.Addrs()
		if err != nil {
			return nil, err
		}
		first := len(networks)
		isDefault := false
		for _, a := range addresses {
			ipNet, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			addr, ok := netip.AddrFromSlice(ipNet.IP)
			if !ok {
				continue
			}
			addr = addr.Unmap()
			bits, _ := ipNet.Mask.Size()
			networks = append(networks, Network{Interface: i.Name, Address: netip.PrefixFrom(addr, bits)})
			for _, source := range towardsInternet {
				isDefault = isDefault || addr == source
			}
		}
		for k := range networks[first:] {
			networks[first+k].Default = isDefault
		}
	}
	return networks, nil
}

// sourceTo is the address that this machine would call another one from. Connecting a UDP socket
// asks the routes and sends nothing.
func sourceTo(network, address string) netip.Addr {
	conn, err := net.Dial(network, address)
	if err != nil {
		return netip.Addr{} // no way there
	}
	defer func() { _ = conn.Close() }()
	addr, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return netip.Addr{}
	}
	return addr.AddrPort().Addr().Unmap()
}

// networksAge is for how long what the machine said is believed: a container can be connected to
// another network while it runs.
const networksAge = 5 * time.Second

// remembered asks no more often than that.
func remembered(ask func() ([]Network, error)) func() ([]Network, error) {
	var mu sync.Mutex
	var asked time.Time
	var networks []Network
	return func() ([]Network, error) {
		mu.Lock()
		defer mu.Unlock()
		if !asked.IsZero() && time.Since(asked) < networksAge {
			return networks, nil
		}
		now, err := ask()
		if err != nil {
			return nil, err
		}
		networks, asked = now, time.Now()
		return networks, nil
	}
}
