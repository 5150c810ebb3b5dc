// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Command ledger is the witness application of the lab. See docs/spec/lab.md, "Storage".
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/holdfast-dev/holdfast/test/lab/storage/ledger"
)

// lastWrite is how long the end waits for an append under way, which may hang.
const lastWrite = time.Second

func main() {
	path := flag.String("data", "/data/ledger", "file to append to, on a volume of the array")
	interval := flag.Duration("interval", 10*time.Millisecond, "time between two lines")
	listen := flag.String("listen", ":8080", "address of HTTP")
	grpcListen := flag.String("grpc", ":8081", "address of the gRPC health service")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	w := ledger.NewWriter(ledger.Config{Path: *path, Interval: *interval, Host: os.Getenv("NODE_NAME")})
	if err := run(ctx, w, *listen, *grpcListen); err != nil {
		fmt.Fprintln(os.Stderr, "ledger:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, w *ledger.Writer, listen, grpcListen string) error {
	web, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	health, err := net.Listen("tcp", grpcListen)
	if err != nil {
		return err
	}
	fmt.Printf("ledger: http on %s, grpc on %s\n", web.Addr(), health.Addr())
	written := make(chan struct{})
	go func() {
		defer close(written)
		w.Run(ctx)
	}()
	ended := make(chan error, 2)
	server := &http.Server{Handler: w.HTTP(), ReadHeaderTimeout: 5 * time.Second}
	go func() { ended <- server.Serve(web) }()
	probes := grpc.NewServer()
	healthpb.RegisterHealthServer(probes, &ledger.Health{Writer: w})
	go func() { ended <- probes.Serve(health) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	select {
	case <-written:
	case <-time.After(lastWrite):
	}
	return nil
}
