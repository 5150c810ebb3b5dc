// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net/netip"
)

// The address plan. Labs do not see each other, so all of them use the same addresses.
const (
	fabricPrefix  = 24
	podRange      = "10.91.0.0/16"
	serviceRange  = "10.92.0.0/16"
	kubernetesIP  = "10.92.0.1"
	arrayAddress  = "10.90.0.10"
	clientAddress = "10.90.0.20"
	apiPort       = 6443
	arrayPort     = 7000
	bmcPort       = 623
)

// The network namespaces next to those of the hosts.
const (
	fabricNS  = "fabric"
	controlNS = "control"
	arrayNS   = "array"
	bmcNS     = "bmc"
	clientNS  = "client"
)

// apiAddress is the address of API server n, counted from 1.
func apiAddress(n int) string { return fmt.Sprintf("10.90.0.%d", 1+n) }

func hostName(n int) string    { return fmt.Sprintf("host-%d", n) }
func hostAddress(n int) string { return fmt.Sprintf("10.90.0.%d", 100+n) }
func bmcAddress(n int) string  { return fmt.Sprintf("10.90.0.%d", 200+n) }

// podSubnet is where the pods of host n live; podGateway is the address that all of them see as their router.
func podSubnet(n int) string  { return fmt.Sprintf("10.91.%d.0/24", n) }
func podGateway(n int) string { return fmt.Sprintf("10.91.%d.1", n) }

func bmcEndpoint(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(bmcAddress(n)), bmcPort)
}
