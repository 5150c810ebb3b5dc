// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package ipmi

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/holdfast-dev/holdfast/fencing"
)

// counting is a source of numbers that are anything but random: 0, 1, 2, …
type counting struct{ next byte }

func (c *counting) Read(p []byte) (int, error) {
	for i := range p {
		p[i], c.next = c.next, c.next+1
	}
	return len(p), nil
}

// exchange is one datagram of ours and the answer to it.
type exchange struct{ ours, theirs []byte }

// transcript reads lines of "> hex" and "< hex"; # begins a comment.
func transcript(t *testing.T, file string) (all []exchange) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		mark, digits, found := strings.Cut(strings.TrimSpace(line), " ")
		if !found || mark == "#" {
			continue
		}
		datagram, err := hex.DecodeString(digits)
		switch {
		case err != nil:
			t.Fatalf("%s: %v in %q", file, err, line)
		case mark == ">":
			all = append(all, exchange{ours: datagram})
		default:
			all[len(all)-1].theirs = datagram
		}
	}
	return all
}

// ipmi_sim does not have cipher suite 17. The transcript is a session of this driver with the BMC of another project (the server
// of bougou/go-ipmi v0.9.1, which ipmitool -C 17 talks to as well), random numbers counting: every datagram of ours must be
// the same again, to the byte, and every answer must be believed.
func TestCipherSuite17AsRecordedWithAnotherImplementation(t *testing.T) {
	recorded := transcript(t, "testdata/suite17.txt")
	bmc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 2048)
		for i, e := range recorded {
			n, from, err := bmc.ReadFromUDP(buffer)
			if err != nil {
				t.Errorf("datagram %d did not come: %v", i+1, err)
				return
			}
			if !bytes.Equal(buffer[:n], e.ours) {
				t.Errorf("datagram %d is\n%x, recorded was\n%x", i+1, buffer[:n], e.ours)
			}
			if _, err := bmc.WriteToUDP(e.theirs, from); err != nil {
				t.Error(err)
			}
		}
	}()
	receipt, err := Driver{random: &counting{}}.Isolate(within(t), fencing.Target{
		Address: "127.0.0.1", Port: bmc.LocalAddr().(*net.UDPAddr).Port,
		Options:     map[string]string{OptionCipherSuite: "17"},
		Credentials: fencing.Credentials{Username: simUser, Password: simPassword},
	}, func(string) error { return nil })
	if err == nil {
		<-done // the last datagram closes the session
	}
	_ = bmc.Close()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	// That BMC does not have Get System GUID, so that the one of RAKP 2 counts; its bytes spell "go-ipmi-e2e".
	want := fmt.Sprintf("%-32x", "go-ipmi-e2e")
	want = strings.ReplaceAll(want, " ", "0")
	if receipt.Before != fencing.PowerOff || fencing.SameMachine(receipt.Identity, want) != nil {
		t.Errorf("the receipt says %v and %s, want Off and %s", receipt.Before, receipt.Identity, want)
	}
}
