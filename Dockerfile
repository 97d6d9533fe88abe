# The broker alone: a static program, the certificate authorities, no shell, no root,
# and no secret in any layer.
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags="-s -w" -o /out/taskpass ./cmd/taskpass && mkdir /out/state

FROM scratch
# Yours to give: .git is not in the build context.
ARG VERSION=
LABEL org.opencontainers.image.title="Taskpass" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/taskpass /usr/local/bin/taskpass
# A volume that is mounted here is its user's from the start.
COPY --from=build --chown=65532:65532 /out/state /var/lib/taskpass
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/taskpass"]
CMD ["serve", "--config", "/etc/taskpass/taskpass.yaml"]
