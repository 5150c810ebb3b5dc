// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package bmc

import (
	"net"
	"time"
)

// presencePing is the RMCP/ASF Presence Ping of IPMI 2.0 §13.2.3: version 6,
// no acknowledgement, class ASF; enterprise 4542, type 0x80, tag 1.
var presencePing = []byte{6, 0, 0xff, 6, 0, 0, 0x11, 0xbe, 0x80, 1, 0, 0}

// pong asks once over a connected UDP socket whether a BMC is there, and waits up to 200 ms.
func pong(conn net.Conn) bool {
	if err := conn.SetDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		return false
	}
	if _, err := conn.Write(presencePing); err != nil {
		return false // refused: nobody listens yet
	}
	answer := make([]byte, 64)
	n, err := conn.Read(answer)
	const pongType, typeAt = 0x40, 8
	return err == nil && n > typeAt && answer[typeAt] == pongType
}
