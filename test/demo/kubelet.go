// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab/events"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

// The first promise, in numbers. The pause is for a machine with other things to do: the ledger writes every 10 ms.
const (
	longestPause = 2 * time.Second
	longestGap   = time.Second
)

// refused finds the beginning of what one of Holdfast's rules says in a refusal: its name in brackets.
var refused = regexp.MustCompile(`\[[A-Z][A-Za-z]+\]`)

// kubeletDies is the first scene: the host and the application live, and nothing may move or double them.
func (d *demo) kubeletDies(ctx context.Context) error {
	d.title("Scene 1", "the kubelet dies, the application lives")
	before, err := d.s.Ledger(ctx)
	if err != nil {
		return err
	}
	if d.began, err = d.do(ctx, "host", "kill-kubelet", d.host); err != nil {
		return err
	}
	d.heading("What Kubernetes alone would do now")
	d.say("  at  50 s  the Node is NotReady, and the ledger's endpoint is cut although it serves")
	d.say("  at 350 s  the pod is deleted: a StatefulSet's stays Terminating forever, while it writes on")
	d.say("  at 355 s  a Deployment's second pod runs elsewhere: two writers, if the volume needs no attach")
	d.say("  sooner    somebody loses patience: kubectl delete pod --force, and there may be two writers")
	d.say("Those are the default timings. This lab is fast: NotReady after 12 s, deletion 20 s later.")
	d.heading("What Holdfast does")
	d.say("The lease has stopped, but the application answers, and so does the host's kernel. So it lives, and nothing may move it: the pod is held, its endpoint kept.")
	if err := d.awaitHold(ctx); err != nil {
		return errors.Join(err, d.alone(ctx))
	}
	if err := d.status(ctx); err != nil {
		return err
	}
	d.heading("What is refused now")
	if err := d.refusals(ctx); err != nil {
		return err
	}
	if err := d.taintManager(ctx); err != nil {
		return err
	}
	if err := d.ledgerLine(ctx); err != nil {
		return err
	}
	d.heading("The kubelet comes back")
	if _, err := d.do(ctx, "host", "start-kubelet", d.host); err != nil {
		return err
	}
	if err := d.awaitClosed(ctx); err != nil {
		return err
	}
	if err := d.status(ctx); err != nil {
		return err
	}
	return d.firstPromise(ctx, before)
}

// awaitHold waits until the pod is held with the verdict that fits.
func (d *demo) awaitHold(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	app, err := d.s.AwaitApp(ctx, "the hold", func(g *v1alpha1.GuardedStatefulApp) bool {
		held := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionHeld)
		return held != nil && held.Reason == "KubeletDown"
	})
	if meta.IsNoMatchError(err) {
		return errors.New("nothing holds the ledger: Holdfast is not installed, the API server does not know its kinds")
	}
	if err != nil {
		return fmt.Errorf("nothing holds the ledger: %w", err)
	}
	d.at(since(d.began), meta.FindStatusCondition(app.Status.Conditions, v1alpha1.ConditionHeld).Message)
	return nil
}

// alone tells what comes of the usual advice where nothing guards the ledger.
func (d *demo) alone(ctx context.Context) error {
	if ctx.Err() != nil {
		return nil
	}
	if err := d.show(ctx, "delete", "pod", stage.Pod, "-n", stage.Namespace, "--force"); err != nil {
		return nil //nolint:nilerr // it was refused, which is as it should be
	}
	deleted := mono.Nanoseconds()
	err := until(ctx, "a write after the delete", func() (bool, error) {
		writers, err := d.s.Writers(ctx, deleted, mono.Nanoseconds())
		return len(writers) > 0 && writers[0].Host == d.host, err
	})
	if err != nil {
		return err
	}
	return fmt.Errorf("kubectl delete --force was carried out, Kubernetes has forgotten the pod, and its container on %s still writes", d.host)
}

// refusals tries what would make a second writer.
func (d *demo) refusals(ctx context.Context) error {
	file := filepath.Join(d.s.Lab.StateDir(), "stage", "eviction.json")
	eviction := `{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"` + stage.Pod + `"},"deleteOptions":{"gracePeriodSeconds":0}}`
	if err := os.WriteFile(file, []byte(eviction), 0o644); err != nil {
		return err
	}
	said := ""
	for _, args := range [][]string{
		{"delete", "pod", stage.Pod, "-n", stage.Namespace, "--force"},
		{"delete", "pod", stage.Pod, "-n", stage.Namespace},
		{"create", "--raw", "/api/v1/namespaces/" + stage.Namespace + "/pods/" + stage.Pod + "/eviction", "-f", file},
		{"delete", "node", d.host},
	} {
		words := strings.ReplaceAll("kubectl "+strings.Join(args, " "), file, "eviction.json")
		d.command(words)
		out, err := d.s.Kubectl(ctx, args...)
		if err == nil {
			d.output(out)
			return fmt.Errorf("%s was carried out; it must be refused", words)
		}
		at := refused.FindStringIndex(out)
		if at == nil || !strings.Contains(out, "(Forbidden)") {
			return fmt.Errorf("%s failed, but not because Holdfast refused it: %s", words, out)
		}
		if out[at[0]:] == said {
			d.output("Forbidden: " + out[at[0]:at[1]] + " in the same words")
			continue
		}
		said = out[at[0]:]
		d.output("Forbidden: " + said)
	}
	return nil
}

// taintManager waits for the moment that would have deleted the pod, and finds the refusal in the audit log.
func (d *demo) taintManager(ctx context.Context) error {
	d.heading("And Kubernetes itself")
	nodeCtx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if _, err := d.s.AwaitNode(nodeCtx, d.host, d.host+" NotReady", func(n *corev1.Node) bool { return !stage.NodeReady(n) }); err != nil {
		return err
	}
	d.at(since(d.began), "the Node is NotReady; 20 s later the taint manager deletes its pods")
	var tried events.Request
	err := until(ctx, "the taint manager's delete", func() (bool, error) {
		asked, err := d.s.Asked(d.began, events.Query{Verbs: []string{"delete"}, Resource: "pods", Namespace: stage.Namespace, Name: stage.Pod,
			Match: func(r events.Request) bool { return strings.HasPrefix(r.User, "system:serviceaccount:kube-system:") }})
		if len(asked) > 0 {
			tried = asked[0]
		}
		return len(asked) > 0, err
	})
	if err != nil {
		return err
	}
	d.at(time.Duration(tried.Mono-d.began), fmt.Sprintf("audit log: %s delete pods/%s: %d", tried.User, stage.Pod, tried.Code))
	if tried.Code != http.StatusForbidden {
		return fmt.Errorf("the taint manager's delete of the ledger was answered with %d", tried.Code)
	}
	at := refused.FindStringIndex(tried.Message)
	if at == nil {
		return fmt.Errorf("the taint manager's delete of the ledger was refused, but not by Holdfast: %s", tried.Message)
	}
	d.output("Forbidden: " + tried.Message[at[0]:])
	return nil
}

func (d *demo) awaitClosed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	back := mono.Nanoseconds()
	incident, err := d.s.AwaitIncident(ctx, d.host, "its end", func(h *v1alpha1.HostIncident) bool { return h.Status.Step == v1alpha1.StepClosed })
	if err != nil {
		return fmt.Errorf("the hold was not lifted: %w", err)
	}
	_, err = d.s.AwaitApp(ctx, "the end of the hold", func(g *v1alpha1.GuardedStatefulApp) bool {
		return meta.IsStatusConditionFalse(g.Status.Conditions, v1alpha1.ConditionHeld)
	})
	if err == nil {
		d.at(since(back), "after its return: the hold is lifted, incident "+incident.Name+" is closed")
	}
	return err
}

// firstPromise judges by the array's log, the endpoints and the pod.
func (d *demo) firstPromise(ctx context.Context, before *corev1.Pod) error {
	d.heading("Did it hold?")
	end := mono.Nanoseconds()
	writers, err := d.s.Writers(ctx, d.began, end)
	if err != nil {
		return err
	}
	if len(writers) != 1 || writers[0].Host != d.host {
		return fmt.Errorf("the array saw other writers than %s: %+v", d.host, writers)
	}
	w := writers[0]
	w.MaxGap = max(w.MaxGap, time.Duration(end-w.Last))
	if w.MaxGap > longestPause {
		return fmt.Errorf("the ledger paused for %s", w.MaxGap)
	}
	d.kept(fmt.Sprintf("array log: one writer, %s, %d writes in %.0f s, longest pause %d ms", w.Host, w.Count, since(d.began).Seconds(), w.MaxGap.Milliseconds()))
	gap := d.s.Endpoints.Gap(d.began, end)
	if gap > longestGap {
		return fmt.Errorf("the Service had no endpoint for %s in sum", gap)
	}
	d.kept(fmt.Sprintf("the Service was without an endpoint for %d ms in sum", gap.Milliseconds()))
	after, err := d.s.Ledger(ctx)
	if err != nil {
		return err
	}
	if was, is := container(before), container(after); after.UID != before.UID || was.ContainerID != is.ContainerID || is.RestartCount != was.RestartCount {
		return fmt.Errorf("the ledger was restarted: it was %s of pod %s, it is %s of pod %s", was.ContainerID, before.UID, is.ContainerID, after.UID)
	}
	d.kept("the same pod, the same container, no restart")
	if err := d.allRefused(); err != nil {
		return err
	}
	return d.judged(ctx)
}

// allRefused counts in the audit log what would have removed the pod or its Node.
func (d *demo) allRefused() error {
	asked, err := d.s.Asked(d.began, events.Query{Match: func(r events.Request) bool {
		return r.Name == stage.Pod && (r.Resource == "pods" && r.Verb == "delete" || r.Subresource == "eviction") ||
			r.Name == d.host && r.Resource == "nodes" && r.Verb == "delete"
	}})
	if err != nil {
		return err
	}
	for _, r := range asked {
		if r.Code != http.StatusForbidden {
			return fmt.Errorf("the audit log has one that was not refused: %s", r)
		}
	}
	d.kept(fmt.Sprintf("audit log: %d attempts to remove the pod or its Node, all refused", len(asked)))
	return nil
}

func container(p *corev1.Pod) corev1.ContainerStatus {
	if len(p.Status.ContainerStatuses) == 0 {
		return corev1.ContainerStatus{}
	}
	return p.Status.ContainerStatuses[0]
}

// judged asks ledger-check about everything so far.
func (d *demo) judged(ctx context.Context) error {
	j, err := d.s.Judge(ctx)
	if err != nil {
		return err
	}
	if err := j.Guilty(); err != nil {
		return err
	}
	d.kept(fmt.Sprintf("acknowledged writes: %d, lost: %d; interleavings of writers: %d", j.Acked, len(j.LostAcks), len(j.Interleavings)))
	return nil
}
