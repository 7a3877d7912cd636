# Kafka as it is published, and the JMX agent that it does not bring.
ARG KAFKA_VERSION=4.3.1
ARG MAVEN_VERSION=3.9.9-eclipse-temurin-21

FROM maven:${MAVEN_VERSION} AS agent
RUN mvn -B -q dependency:copy -DoutputDirectory=/out -Dmdep.stripVersion \
    -Dartifact=io.prometheus.jmx:jmx_prometheus_javaagent:1.0.1

FROM apache/kafka:${KAFKA_VERSION}
COPY --from=agent /out/jmx_prometheus_javaagent.jar /opt/jmx/
