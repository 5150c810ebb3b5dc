// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/holdfast-dev/holdfast/test/lab"
)

func init() {
	register(newImage)
	register(newVolume)
}

func newImage() *cobra.Command {
	image := &cobra.Command{Use: "image", Short: "Load container images"}
	image.AddCommand(newImageLoad())
	return image
}

func newImageLoad() *cobra.Command {
	return &cobra.Command{
		Use:   "load TAR...",
		Short: "Load image tars (docker save) into every host, now and at later power-ons",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := openLab(cmd)
			if err != nil {
				return err
			}
			for _, tar := range args {
				if err := l.LoadImage(cmd.Context(), tar); err != nil {
					return err
				}
			}
			return printResult(cmd, map[string][]string{"loaded": args}, "loaded "+strings.Join(args, ", "))
		},
	}
}

func newVolume() *cobra.Command {
	volume := &cobra.Command{Use: "volume", Short: "Make volumes"}
	volume.AddCommand(newVolumeCreate())
	return volume
}

func newVolumeCreate() *cobra.Command {
	var v lab.Volume
	var size string
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a volume on the array, with a PersistentVolume and a claim bound to it",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			quantity, err := resource.ParseQuantity(size)
			if err != nil {
				return fmt.Errorf("--size %q: %w", size, err)
			}
			v.Name, v.SizeBytes = args[0], quantity.Value()
			l, err := openLab(cmd)
			if err != nil {
				return err
			}
			if err := l.CreateVolume(cmd.Context(), v); err != nil {
				return err
			}
			return printResult(cmd, map[string]string{"volume": v.Name, "class": v.Class}, "volume "+v.Name+" is bound")
		},
	}
	cmd.Flags().StringVar(&v.Class, "class", "enforcing", "enforcing (the array refuses hosts that are not attached) or permissive")
	cmd.Flags().StringVar(&v.Namespace, "namespace", "default", "namespace of the claim; it is made if need be")
	cmd.Flags().StringVar(&v.Claim, "claim", "", "name of the claim (default NAME)")
	cmd.Flags().StringVar(&size, "size", "64Mi", "size")
	return cmd
}
