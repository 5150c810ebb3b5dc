// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package ipmi

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"io"
)

// Payload types of IPMI 2.0 table 13-16.
const (
	payloadMessage      = 0x00
	payloadOpenRequest  = 0x10
	payloadOpenResponse = 0x11
	payloadRAKP1        = 0x12
	payloadRAKP2        = 0x13
	payloadRAKP3        = 0x14
	payloadRAKP4        = 0x15

	// sealed marks a payload as encrypted and authenticated.
	sealed = 0xC0
)

const (
	// bodyAt is where the part begins that the integrity code covers: after the four bytes of the RMCP header.
	bodyAt = 4
	// payloadAt is where the payload begins: 4 bytes of RMCP and 12 of RMCP+ session header.
	payloadAt = 16
	// trailerFixed are the two bytes between padding and code: pad length and next header.
	trailerFixed = 2
	nextHeader   = 0x07
)

// errNotOurs: the datagram is not the answer that is waited for, or is not proven to be. It is dropped and the wait goes on:
// anybody can send a datagram.
var errNotOurs = errors.New("not an answer to this request")

// header begins every packet: RMCP version 6, no RMCP acknowledge, class IPMI; then the RMCP+ session header.
func header(kind byte, session, sequence uint32, length int) []byte {
	h := []byte{0x06, 0x00, 0xFF, 0x07, 0x06, kind}
	h = binary.LittleEndian.AppendUint32(h, session)
	h = binary.LittleEndian.AppendUint32(h, sequence)
	return binary.LittleEndian.AppendUint16(h, uint16(length))
}

// setup is a packet outside any session, as the handshake uses.
func setup(kind byte, payload []byte) []byte {
	return append(header(kind, 0, 0, len(payload)), payload...)
}

// payloadOf returns the payload of a datagram whose header says kind and session, and the rest behind it.
func payloadOf(datagram []byte, kind byte, session uint32) (payload, trailer []byte, err error) {
	if len(datagram) < payloadAt || datagram[0] != 0x06 || datagram[3]&0x1F != 0x07 || datagram[4] != 0x06 || datagram[5] != kind ||
		binary.LittleEndian.Uint32(datagram[6:]) != session {
		return nil, nil, errNotOurs
	}
	length := int(binary.LittleEndian.Uint16(datagram[14:]))
	if len(datagram) < payloadAt+length {
		return nil, nil, errNotOurs
	}
	return datagram[payloadAt : payloadAt+length], datagram[payloadAt+length:], nil
}

// keys seal and open the packets of one session.
type keys struct {
	suite suite
	// integrity is K1; encryption the first 16 bytes of K2 (IPMI 2.0 §13.32).
	integrity, encryption []byte
}

// seal encrypts the message and signs the packet (IPMI 2.0 §13.28.4 and §13.29). The initialisation vector is read from random.
func (k keys) seal(random io.Reader, session, sequence uint32, message []byte) ([]byte, error) {
	vector := make([]byte, aes.BlockSize)
	if _, err := io.ReadFull(random, vector); err != nil {
		return nil, err
	}
	padding := (aes.BlockSize - (len(message)+1)%aes.BlockSize) % aes.BlockSize
	text := bytes.Clone(message)
	for i := 1; i <= padding; i++ {
		text = append(text, byte(i))
	}
	text = append(text, byte(padding))
	block, err := aes.NewCipher(k.encryption)
	if err != nil {
		return nil, err
	}
	cipher.NewCBCEncrypter(block, vector).CryptBlocks(text, text)

	packet := header(sealed|payloadMessage, session, sequence, len(vector)+len(text))
	packet = append(append(packet, vector...), text...)
	fill := (4 - (len(packet)-bodyAt+trailerFixed)%4) % 4
	for range fill {
		packet = append(packet, 0xFF)
	}
	packet = append(packet, byte(fill), nextHeader)
	return append(packet, k.suite.mac(k.integrity, packet[bodyAt:])[:k.suite.sealCode]...), nil
}

// open returns the message of a packet of this session. It takes nothing that is not signed with the session's key, and looks into
// nothing before the signature is found good; a clear-text or unsigned packet is errNotOurs, whatever it says.
func (k keys) open(datagram []byte, session uint32) ([]byte, error) {
	payload, trailer, err := payloadOf(datagram, sealed|payloadMessage, session)
	if err != nil {
		return nil, err
	}
	if len(trailer) < trailerFixed+k.suite.sealCode {
		return nil, errNotOurs
	}
	signed := datagram[bodyAt : len(datagram)-k.suite.sealCode]
	if !hmac.Equal(datagram[len(datagram)-k.suite.sealCode:], k.suite.mac(k.integrity, signed)[:k.suite.sealCode]) {
		return nil, errNotOurs
	}
	if len(payload) < 2*aes.BlockSize || len(payload)%aes.BlockSize != 0 {
		return nil, errNotOurs
	}
	block, err := aes.NewCipher(k.encryption)
	if err != nil {
		return nil, err
	}
	text := bytes.Clone(payload[aes.BlockSize:])
	cipher.NewCBCDecrypter(block, payload[:aes.BlockSize]).CryptBlocks(text, text)
	padding := int(text[len(text)-1])
	if padding >= len(text) {
		return nil, errNotOurs
	}
	return text[:len(text)-1-padding], nil
}

// Addresses of IPMI 2.0 §5.5: the BMC, and the software ID of a remote console.
const (
	addressBMC     = 0x20
	addressConsole = 0x81
)

// command is one IPMI command: network function and number.
type command struct {
	name       string
	netFn, num byte
}

var (
	getSystemGUID    = command{"Get System GUID", 0x06, 0x37}
	setPrivilege     = command{"Set Session Privilege Level", 0x06, 0x3B}
	closeSession     = command{"Close Session", 0x06, 0x3C}
	getChassisStatus = command{"Get Chassis Status", 0x00, 0x01}
	chassisControl   = command{"Chassis Control", 0x00, 0x02}
)

// request is the message of a command (IPMI 2.0 §13.8). Its number, 0 to 63, ties the answer to it.
func request(c command, number byte, body ...byte) []byte {
	m := []byte{addressBMC, c.netFn << 2}
	m = append(m, checksum(m), addressConsole, number<<2, c.num)
	m = append(m, body...)
	return append(m, checksum(m[3:]))
}

// response returns completion code and body of the message that answers the command with that number.
func response(message []byte, c command, number byte) (code byte, body []byte, err error) {
	const fixed = 8 // two addresses, function, number, command, code, two checksums
	if len(message) < fixed || checksum(message[:3]) != 0 || checksum(message[3:]) != 0 ||
		message[1]>>2 != c.netFn|1 || message[4]>>2 != number || message[5] != c.num {
		return 0, nil, errNotOurs
	}
	return message[6], message[7 : len(message)-1], nil
}

// checksum is the two's complement of the sum; that of a range which ends in its own checksum is zero.
func checksum(b []byte) byte {
	var sum byte
	for _, x := range b {
		sum += x
	}
	return -sum
}
