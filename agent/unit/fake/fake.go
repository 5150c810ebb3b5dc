// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package fake is a system's bus with a systemd on it, as far as package unit speaks to them: for its tests, and for hosts of the lab, which have neither.
package fake

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"

	"github.com/godbus/dbus/v5"
)

// Units are what the systemd knows. Its methods may be called at a time.
type Units interface {
	// State is the unit's LoadState and ActiveState.
	State(unit string) (load, active string)
	// Restart restarts it and returns once that has ended; the result is a job's, "done" if all went well.
	Restart(unit string) (result string)
}

// Serve answers on the listener until it is closed, and returns what Accept then says.
func Serve(l net.Listener, units Units) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			_ = (&caller{conn: conn, in: bufio.NewReader(conn), units: units}).serve() // whoever leaves gets no more answers
		}()
	}
}

// caller is one connection.
type caller struct {
	conn  net.Conn
	in    *bufio.Reader
	units Units

	mu     sync.Mutex // for what is written
	serial uint32
	jobs   uint32
}

func (c *caller) serve() error {
	if err := c.greet(); err != nil {
		return err
	}
	for {
		m, err := dbus.DecodeMessage(c.in)
		if err != nil {
			return err
		}
		if m.Type != dbus.TypeMethodCall {
			continue
		}
		if err := c.answer(m); err != nil {
			return err
		}
	}
}

// greet takes anybody whom the socket's file lets in: "Authentication Protocol" in the D-Bus specification.
func (c *caller) greet() error {
	if b, err := c.in.ReadByte(); err != nil || b != 0 {
		return errors.Join(errors.New("the first byte is no zero"), err)
	}
	for {
		line, err := c.in.ReadString('\n')
		if err != nil {
			return err
		}
		say := "ERROR"
		switch word, rest, _ := strings.Cut(strings.TrimSpace(line), " "); {
		case word == "BEGIN":
			return nil
		case word == "AUTH" && strings.HasPrefix(rest, "EXTERNAL"):
			say = "OK 0123456789abcdef0123456789abcdef"
		case word == "AUTH":
			say = "REJECTED EXTERNAL"
		}
		if _, err := io.WriteString(c.conn, say+"\r\n"); err != nil {
			return err
		}
	}
}

const unitPath = "/org/freedesktop/systemd1/unit/"

func (c *caller) answer(m *dbus.Message) error {
	word := func(n int) string {
		if n >= len(m.Body) {
			return ""
		}
		text, _ := m.Body[n].(string)
		return text
	}
	switch method := header(m, dbus.FieldInterface) + "." + header(m, dbus.FieldMember); method {
	case "org.freedesktop.DBus.Hello":
		return c.reply(m, ":1.1")
	case "org.freedesktop.DBus.AddMatch", "org.freedesktop.systemd1.Manager.Subscribe":
		return c.reply(m)
	case "org.freedesktop.systemd1.Manager.LoadUnit":
		return c.reply(m, dbus.ObjectPath(unitPath+escape(word(0))))
	case "org.freedesktop.DBus.Properties.Get":
		load, active := c.units.State(unescape(strings.TrimPrefix(header(m, dbus.FieldPath), unitPath)))
		return c.reply(m, dbus.MakeVariant(map[string]string{"LoadState": load, "ActiveState": active}[word(1)]))
	case "org.freedesktop.systemd1.Manager.RestartUnit":
		c.jobs++
		job := dbus.ObjectPath(fmt.Sprintf("/org/freedesktop/systemd1/job/%d", c.jobs))
		err := c.reply(m, job)
		go c.restart(c.jobs, job, word(0))
		return err
	default:
		return c.say(&dbus.Message{Type: dbus.TypeError, Body: []any{method + " is not known here"}, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldErrorName: dbus.MakeVariant("org.freedesktop.DBus.Error.UnknownMethod"), dbus.FieldReplySerial: dbus.MakeVariant(m.Serial())}})
	}
}

func (c *caller) restart(id uint32, job dbus.ObjectPath, unit string) {
	result := c.units.Restart(unit)
	_ = c.say(&dbus.Message{Type: dbus.TypeSignal, Body: []any{id, job, unit, result}, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath("/org/freedesktop/systemd1")), dbus.FieldInterface: dbus.MakeVariant("org.freedesktop.systemd1.Manager"),
		dbus.FieldMember: dbus.MakeVariant("JobRemoved"), dbus.FieldSender: dbus.MakeVariant("org.freedesktop.systemd1")}}) // whoever left misses it
}

// header is a field's text, if it has any.
func header(m *dbus.Message, field dbus.HeaderField) string {
	switch value := m.Headers[field].Value().(type) {
	case string:
		return value
	case dbus.ObjectPath:
		return string(value)
	default:
		return ""
	}
}

func (c *caller) reply(to *dbus.Message, body ...any) error {
	return c.say(&dbus.Message{Type: dbus.TypeMethodReply, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{dbus.FieldReplySerial: dbus.MakeVariant(to.Serial())}})
}

// say sends a message with a serial number of its own, which is in the bytes 8 to 11: the library numbers those of its own connections only.
func (c *caller) say(m *dbus.Message) error {
	if len(m.Body) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(m.Body...))
	}
	text := &bytes.Buffer{}
	if err := m.EncodeTo(text, binary.LittleEndian); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.serial++
	binary.LittleEndian.PutUint32(text.Bytes()[8:], c.serial)
	_, err := c.conn.Write(text.Bytes())
	return err
}

// escape writes a unit's name as the last part of its path, and unescape reads it: letters and digits as they are, anything else as _ and two hexadecimal digits.
func escape(name string) string {
	var out strings.Builder
	for _, b := range []byte(name) {
		if b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' {
			out.WriteByte(b)
		} else {
			fmt.Fprintf(&out, "_%02x", b)
		}
	}
	return out.String()
}

func unescape(path string) string {
	var out strings.Builder
	for n := 0; n < len(path); n++ {
		var b byte
		if _, err := fmt.Sscanf(path[n:], "_%02x", &b); err == nil {
			out.WriteByte(b)
			n += 2
		} else {
			out.WriteByte(path[n])
		}
	}
	return out.String()
}
