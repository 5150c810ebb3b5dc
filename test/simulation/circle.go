// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package simulation has as many agents as asked for in one process, over a network that loses packets, and measures what docs/spec/witness.md says of many
// hosts: how soon all know of a loss, how often a host that lives is suspected, and what the gossip and a manager's questions weigh. The agents are those of
// agent/gossip, with their own timings; the manager asks by agent/call what agent/api answers. The network is simulated, and so is time (testing/synctest): it
// passes when everybody waits, so that a slow machine delays nobody. docs/results/simulation has the rows.
package simulation

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	prng "math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"

	"github.com/holdfast-dev/holdfast/agent/gossip"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

// agent is one of the circle.
type agent struct {
	*gossip.Member
	number int
	node   string
	link   *link
}

// circle is all of them.
type circle struct {
	hosts   int
	dir     string
	network *network
	chance  *prng.Rand
	// agents are those whose hosts live; boots is how many have begun.
	agents []*agent
	boots  int
	ending sync.WaitGroup
}

const (
	// delay is a packet's least; the most is twice that.
	delay = 250 * time.Microsecond
	// seeds is how many hosts a cluster's agents begin with: as many as controllers/witness names.
	seeds = 16
	// settles is how long what agents do at last may take, such as asking for a host by TCP.
	settles = time.Minute
	// gathersWithin bounds the wait for all to know all, and for news to have gone round.
	gathersWithin = 10 * time.Minute
	// quiet is how many packets a host sends in a second while there is no news and none is lost; news is passed on for minutes after the last has heard it.
	quiet = 7
)

// gather starts so many agents at once, as a new DaemonSet does, and waits until each hears all. Files are in the directory.
func gather(hosts int, dir string) (*circle, error) {
	c := &circle{hosts: hosts, dir: dir, network: newNetwork(delay)}
	c.draw(0)
	if err := c.files(); err != nil {
		return nil, err
	}
	for number := 1; number <= hosts; number++ {
		if err := c.boot(number); err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	if err := c.whole(); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// draw has all chances drawn anew from a seed: those of the network, and which hosts are lost. When an agent asks whom is memberlist's own, and not drawn from it.
func (c *circle) draw(seed uint64) {
	c.network.draw(seed)
	c.chance = prng.New(prng.NewPCG(seed, 2)) //nolint:gosec // which hosts are lost is no secret
}

// settle waits, while no packet is lost, until all is said.
func (c *circle) settle() error {
	const span = 10 * time.Second
	c.network.worsen(0)
	for began := time.Now(); time.Since(began) < gathersWithin; {
		before, _ := c.traffic()
		time.Sleep(span)
		if after, _ := c.traffic(); float64(after-before) < quiet*span.Seconds()*float64(c.hosts) {
			return nil
		}
	}
	return fmt.Errorf("hosts still send more than %d packets a second after %s", quiet, gathersWithin)
}

func (c *circle) keys() string  { return filepath.Join(c.dir, "keys") }
func (c *circle) seeds() string { return filepath.Join(c.dir, "seeds") }

func (c *circle) files() error {
	if err := os.MkdirAll(c.keys(), 0o700); err != nil {
		return err
	}
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(c.keys(), gossip.Primary), []byte(base64.StdEncoding.EncodeToString(key)), 0o600); err != nil {
		return err
	}
	var list strings.Builder
	for number := 1; number <= min(seeds, c.hosts); number++ {
		fmt.Fprintln(&list, ip(number))
	}
	return os.WriteFile(c.seeds(), []byte(list.String()), 0o600)
}

// boot starts the agent of a host, in a new boot of it.
func (c *circle) boot(number int) error {
	c.boots++
	a := &agent{number: number, node: "node-" + strconv.Itoa(number), link: c.network.attach(number)}
	facts := wire.Facts{
		Node: a.node, BootID: fmt.Sprintf("00000000-0000-4000-8000-%012d", c.boots), SystemUUID: fmt.Sprintf("00000000-0000-4000-9000-%012d", number),
		Kubelet: wire.Alive, Runtime: wire.Alive, API: wire.Alive, Revision: 1,
	}
	var err error
	a.Member, err = gossip.Start(gossip.Config{Facts: facts, BindPort: port, AdvertiseAddress: a.link.ip.String(), KeyDir: c.keys(), SeedsFile: c.seeds(),
		Unwatched: true, Transport: a.link, Log: logr.Discard()})
	if err != nil {
		return err
	}
	c.agents = append(c.agents, a)
	return nil
}

// whole waits until each hears all. It does not wait for changes: there are as many as hosts, at every agent, and each would be a view of all.
func (c *circle) whole() error {
	began := time.Now()
	for _, a := range c.agents {
		for {
			v := a.View()
			if count(v, wire.StateAlive) == c.hosts && len(v.Hosts) == c.hosts {
				break
			}
			if time.Since(began) > gathersWithin {
				return fmt.Errorf("%s knows %d of %d hosts after %s", a.node, count(v, wire.StateAlive), c.hosts, gathersWithin)
			}
			time.Sleep(time.Second)
		}
	}
	return nil
}

func count(v wire.View, state wire.State) int {
	n := 0
	for _, h := range v.Hosts {
		if h.State == state {
			n++
		}
	}
	return n
}

// lose takes the power of as many hosts at once, any of those whose agents no manager asks.
func (c *circle) lose(hosts int) (lost []*agent) {
	for range hosts {
		i := vantages + c.chance.IntN(len(c.agents)-vantages)
		a := c.agents[i]
		c.agents = append(c.agents[:i:i], c.agents[i+1:]...)
		lost = append(lost, a)
		a.link.pull()
		c.ending.Go(func() { _ = a.Close() }) // it is dead: nobody hears what it could complain of
	}
	return lost
}

// back boots hosts that were lost, and waits until all know it.
func (c *circle) back(lost []*agent) error {
	for _, a := range lost {
		if err := c.boot(a.number); err != nil {
			return err
		}
	}
	return c.whole()
}

// close ends all agents. Time passes in the meanwhile, so that whatever waits is over.
func (c *circle) close() error {
	var mu sync.Mutex
	var errs []error
	for _, a := range c.agents {
		c.ending.Go(func() {
			err := a.Close()
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	c.ending.Wait()
	time.Sleep(settles)
	return errors.Join(errs...)
}

// traffic is what all hosts have sent.
func (c *circle) traffic() (packets, bytes int64) {
	for _, a := range c.agents {
		packets, bytes = packets+a.link.sent.Load(), bytes+a.link.bytes.Load()
	}
	return packets, bytes
}

func (c *circle) dropped() (packets int64) {
	for _, a := range c.agents {
		packets += a.link.overrun.Load()
	}
	return packets
}
