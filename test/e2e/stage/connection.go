// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-dev/holdfast/test/lab/mono"
	"github.com/holdfast-dev/holdfast/test/lab/netns"
)

// Seat is where the client of a Connection sits, and what it does.
type Seat struct {
	// Host is the name of the host.
	Host string
	// InPod puts it into a pod of its own on the host, and not onto the host's network.
	InPod bool
	// Writes has it ask something every 100 ms; otherwise it only waits for what comes.
	Writes bool
}

// String is what a row of results calls it.
func (s Seat) String() string {
	where, what := "host", "reads"
	if s.InPod {
		where = "pod"
	}
	if s.Writes {
		what = "writes"
	}
	return fmt.Sprintf("%s on %s, %s", where, s.Host, what)
}

// Seats are all kinds of clients on a host.
func Seats(host string) []Seat {
	return []Seat{{host, true, false}, {host, true, true}, {host, false, false}, {host, false, true}}
}

// askEvery is how often a client that writes does so.
const askEvery = 100 * time.Millisecond

// Connection is one that a client has to the ledger, through its Service, and keeps for as long as it can. It sends no keep-alives and has no time-outs: when
// the ledger's host is gone, only the network ends it.
type Connection struct {
	Seat
	// To is the host of the member that it leads to.
	To    string
	conn  net.Conn
	tasks sync.WaitGroup
	once  sync.Once
	ended chan struct{}
	at    mono.Stamp
	err   error
}

// Connect opens a connection to the actor's Service and returns once the ledger has answered on it. It is the caller's to close.
func (a *Actor) Connect(ctx context.Context, seat Seat) (*Connection, error) {
	var service corev1.Service
	if err := a.stage.Client.Get(ctx, types.NamespacedName{Namespace: Namespace, Name: a.Name + "-front"}, &service); err != nil {
		return nil, err
	}
	address, err := netip.ParseAddr(service.Spec.ClusterIP)
	if err != nil {
		return nil, fmt.Errorf("the Service of %s: %w", a.Name, err)
	}
	place := a.stage.Lab.NetNS(seat.Host)
	if seat.InPod {
		if place, err = a.stage.podNetwork(ctx, seat.Host); err != nil {
			return nil, err
		}
	}
	c := &Connection{Seat: seat, ended: make(chan struct{})}
	err = netns.Do(place, func() error {
		c.conn, err = (&net.Dialer{KeepAlive: -1}).DialContext(ctx, "tcp", netip.AddrPortFrom(address, 8080).String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("a client in a %s: %w", seat, err)
	}
	if err := c.greet(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("a client in a %s: %w", seat, err), c.conn.Close())
	}
	c.tasks.Go(c.read)
	if seat.Writes {
		c.tasks.Go(c.write)
	}
	return c, nil
}

// greet asks one question and reads its answer: the connection is the ledger's then.
func (c *Connection) greet(ctx context.Context) error {
	if until, limited := ctx.Deadline(); limited {
		if err := c.conn.SetDeadline(until); err != nil {
			return err
		}
	}
	if err := c.ask(); err != nil {
		return err
	}
	answer, err := http.ReadResponse(bufio.NewReader(c.conn), nil)
	if err != nil {
		return err
	}
	var told struct {
		Host string `json:"host"`
	}
	if err := json.NewDecoder(answer.Body).Decode(&told); err != nil {
		return fmt.Errorf("what the ledger says of itself: %w", err)
	}
	c.To = told.Host
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return err
	}
	return errors.Join(answer.Body.Close(), c.conn.SetDeadline(time.Time{}))
}

func (c *Connection) ask() error {
	_, err := io.WriteString(c.conn, "GET /status HTTP/1.1\r\nHost: ledger\r\n\r\n")
	return err
}

func (c *Connection) read() {
	_, err := io.Copy(io.Discard, c.conn)
	if err == nil {
		err = io.EOF
	}
	c.end(err)
}

func (c *Connection) write() {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-c.ended:
			return
		}
		if err := c.ask(); err != nil {
			c.end(err)
			return
		}
	}
}

func (c *Connection) end(err error) {
	c.once.Do(func() {
		c.at, c.err = mono.Now(), err
		close(c.ended)
	})
}

// Ended is closed when the connection has ended.
func (c *Connection) Ended() <-chan struct{} { return c.ended }

// Open reports whether nothing has ended it.
func (c *Connection) Open() bool {
	select {
	case <-c.ended:
		return false
	default:
		return true
	}
}

// End waits until the connection has ended, and says when the client learned of it, and how: syscall.ECONNRESET where it was reset, syscall.ECONNABORTED where the
// host's agent has ended a socket of the host's network, io.EOF where the ledger closed it, net.ErrClosed after Close.
func (c *Connection) End(ctx context.Context) (at mono.Stamp, how, err error) {
	select {
	case <-c.ended:
		return c.at, c.err, nil
	case <-ctx.Done():
		return mono.Stamp{}, nil, fmt.Errorf("the connection of the client in a %s has not ended: %w", c.Seat, ctx.Err())
	}
}

// Close ends it, if nothing has.
func (c *Connection) Close() error {
	err := c.conn.Close()
	c.tasks.Wait()
	return err
}

// podNetwork is the network namespace of a pod on the host that does nothing and stays until the lab goes down.
func (s *Stage) podNetwork(ctx context.Context, host string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	grace := int64(0)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: "bystander-" + host}, Spec: corev1.PodSpec{
		NodeName: host, TerminationGracePeriodSeconds: &grace, Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		Containers: []corev1.Container{{Name: "pause", Image: "holdfast.dev/lab/pause:dev", ImagePullPolicy: corev1.PullNever}},
	}}
	if err := s.Client.Create(ctx, pod); err != nil && !apierrors.IsAlreadyExists(err) {
		return "", err
	}
	found, err := awaitObject(ctx, s, &corev1.PodList{}, "a pod for clients on "+host, func(p *corev1.Pod) bool { return p.Name == pod.Name && PodReady(p) })
	if err != nil {
		return "", err
	}
	id, err := s.ProcessOf(found, "pause")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("/proc/%d/ns/net", id.PID), nil
}
