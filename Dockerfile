# The images for everybody with a container engine; `make image` makes them without. Build in the checkout:
#
#   docker build -t holdfast.dev/manager:dev .
#   docker build -t holdfast.dev/witness:dev --target witness .
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
ARG TARGETOS TARGETARCH
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -ldflags '-s -w' -o /manager ./cmd/manager
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -ldflags '-s -w' -o /witness ./cmd/witness

FROM scratch AS witness
COPY --from=build /witness /witness
ENTRYPOINT ["/witness"]

FROM scratch
COPY --from=build /manager /manager
USER 65532:65532
ENTRYPOINT ["/manager"]
