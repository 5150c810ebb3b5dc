// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package bmc

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// User is the one account of every BMC of the lab; it has administrator privilege.
const User = "admin"

// Password is the password of User on the BMC of host.
func Password(host string) string { return "lab-" + host }

// WireGUID turns a machine ID (32 hexadecimal digits, a UUID without dashes)
// into the 16 bytes, in hexadecimal, that Get System GUID answers.
//
// They have the SMBIOS order, which nearly all firmware uses although IPMI
// 2.0 §22.14 asks for another: the first three fields of the UUID (4, 2 and
// 2 bytes) are little-endian, the other 8 bytes stand as they are printed. For
// a version 4 UUID `ipmitool mc guid` recognises that order by itself and
// prints the machine ID with dashes; the RFC 4122 order it misreads about
// every third time.
func WireGUID(machineID string) (string, error) {
	raw, err := hex.DecodeString(machineID)
	if err != nil || len(raw) != 16 {
		return "", fmt.Errorf("machine ID %q is not 32 hexadecimal digits", machineID)
	}
	for _, field := range [][]byte{raw[0:4], raw[4:6], raw[6:8]} {
		for i, j := 0, len(field)-1; i < j; i, j = i+1, j-1 {
			field[i], field[j] = field[j], field[i]
		}
	}
	return hex.EncodeToString(raw), nil
}

// otherMachine derives a machine ID that belongs to no host; it is a version 4
// UUID as well and always the same for the same machine.
func otherMachine(machineID string) string {
	sum := sha256.Sum256([]byte("another machine than " + machineID))
	sum[6] = sum[6]&0x0f | 0x40
	sum[8] = sum[8]&0x3f | 0x80
	return hex.EncodeToString(sum[:16])
}

var (
	hostName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,14}[a-z0-9])?$`) // with "lab-" within IPMI's 20 bytes of password
	plain    = regexp.MustCompile(`^[A-Za-z0-9/._@:+=-]+$`)
)

func (b *BMC) validate() error {
	switch {
	case !hostName.MatchString(b.Host):
		return fmt.Errorf("host %q: a BMC needs a name of 1 to 16 lower-case letters, digits and dashes", b.Host)
	case !filepath.IsAbs(b.Dir) || !plain.MatchString(b.Dir):
		return fmt.Errorf("host %s: BMC directory %q must be absolute and free of blanks and quotes: ipmi_sim passes it to a shell; set HOLDFAST_LAB_HOME to another directory", b.Host, b.Dir)
	case len(b.Control) == 0:
		return fmt.Errorf("host %s: BMC without power control command", b.Host)
	case !b.Address.IsValid():
		return fmt.Errorf("host %s: BMC without address", b.Host)
	}
	return nil
}

// configuration is what ipmi_sim reads, under its file names in the BMC's directory.
type configuration map[string]string

func (b *BMC) configuration(mode Mode) (configuration, error) {
	machine, password := b.MachineID, Password(b.Host)
	switch mode {
	case WrongIdentity:
		machine = otherMachine(machine)
	case WrongPassword:
		password = "not-" + Password(b.Host)[len("lab-"):]
	}
	guid, err := WireGUID(machine)
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", b.Host, err)
	}
	return configuration{
		"lan.conf": b.lan(guid, password),
		"commands": commands(guid),
		"power":    "#!/bin/sh\nexec " + quoted(b.Control) + " \"$@\"\n",
	}, nil
}

// lan is the LAN side, read with ipmi_sim -c: only RMCP+ sessions with a password are of use.
func (b *BMC) lan(guid, password string) string {
	return fmt.Sprintf(`name "%s"
set_working_mc 0x20
startlan 1
  addr %s %d
  priv_limit admin
  allowed_auths_callback md5
  allowed_auths_user md5
  allowed_auths_operator md5
  allowed_auths_admin md5
  guid %s
endlan
chassis_control "%s"
user 1 false "" "" user 10 md5
user 2 true "%s" "%s" admin 10 md5
`, b.Host, b.Address.Addr(), b.Address.Port(), guid, filepath.Join(b.Dir, "power"), User, password)
}

// commands sets up one management controller at 0x20, read with ipmi_sim -f.
func commands(guid string) string {
	return `mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x20 1 0 0x80 0x0000 0x0000
mc_set_guid 0x20 ` + guid + `
sel_enable 0x20 100 0x02
mc_enable 0x20
`
}

// quoted is argv as words of a shell command.
func quoted(argv []string) string {
	words := make([]string, len(argv))
	for i, word := range argv {
		words[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
	}
	return strings.Join(words, " ")
}

// digest tells configurations apart; order does not matter.
func (c configuration) digest() string {
	sum := sha256.New()
	for _, name := range []string{"lan.conf", "commands", "power"} {
		fmt.Fprintf(sum, "%s %d\n%s", name, len(c[name]), c[name])
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// write puts the files into dir and empties the state that ipmi_sim keeps of
// an earlier run, which would override them.
func (c configuration) write(dir string) error {
	state := filepath.Join(dir, "state")
	if err := os.RemoveAll(state); err != nil {
		return err
	}
	if err := os.MkdirAll(state, 0o755); err != nil {
		return err
	}
	for name, text := range c {
		perm := os.FileMode(0o600)
		if name == "power" {
			perm = 0o755
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), perm); err != nil {
			return err
		}
	}
	return nil
}
