// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers a field of a message.
type Field = protowire.Number

// With appends a field that is a text or a message to a message.
func With[T string | []byte](message []byte, field Field, value T) []byte {
	return protowire.AppendString(protowire.AppendTag(message, field, protowire.BytesType), string(value))
}

// Parts are the values of a field that is a text or a message, in their order.
func Parts(message []byte, field Field) (parts [][]byte, err error) {
	err = each(message, func(is Field, kind protowire.Type, value []byte) {
		if is == field && kind == protowire.BytesType {
			part, _ := protowire.ConsumeBytes(value)
			parts = append(parts, part)
		}
	})
	return parts, err
}

// Number is the value of a field that is a number or the member of an enumeration: the last, and 0 where there is none.
func Number(message []byte, field Field) (number uint64, err error) {
	err = each(message, func(is Field, kind protowire.Type, value []byte) {
		if is == field && kind == protowire.VarintType {
			number, _ = protowire.ConsumeVarint(value)
		}
	})
	return number, err
}

// At is the last text or message that is found along the fields, one within the other, or nothing.
func At(message []byte, fields ...Field) ([]byte, error) {
	for _, field := range fields {
		parts, err := Parts(message, field)
		if err != nil || len(parts) == 0 {
			return nil, err
		}
		message = parts[len(parts)-1]
	}
	return message, nil
}

// each passes each field of a message, which it has checked.
func each(message []byte, f func(number Field, kind protowire.Type, value []byte)) error {
	for len(message) > 0 {
		number, kind, tag := protowire.ConsumeTag(message)
		if tag < 0 {
			return fmt.Errorf("a message that is none: %w", protowire.ParseError(tag))
		}
		length := protowire.ConsumeFieldValue(number, kind, message[tag:])
		if length < 0 {
			return fmt.Errorf("a message that is none: %w", protowire.ParseError(length))
		}
		f(number, kind, message[tag:tag+length])
		message = message[tag+length:]
	}
	return nil
}
