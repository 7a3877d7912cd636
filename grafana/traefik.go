package main

// Only metrics that Traefik 2.11 and 3 both have, or with what the other one calls it.

var traefik = board{
	uid: "traefik", title: "Traefik",
	about:     "Does the edge answer, how fast, and which of the servers behind it are well?",
	variables: []variable{serviceVariable},
	rows: []row{
		{"Does the edge answer?", []*panel{
			stat("Is Traefik up?", "Whether it answers its scrape. Alert: TraefikDown.", "none",
				`min(up{job="traefik"})`, some).means(state{"1", "yes", "green"}, state{"0", "no", "red"}).otherwise("unknown"),
			stat("How many requests come?", "Requests a second to the chosen services.", "reqps",
				`sum(service:traefik_service_requests:rate5m{service=~"$service"})`, steps("blue")).otherwise("no requests"),
			stat("How many fail?", "Share of 5xx among the answers of the worst service over 5 minutes. Alert: TraefikHigh5xx.", "percentunit",
				`max(service:traefik_service_errors_per_requests:ratio_rate5m{service=~"$service"})`, upTo(0.01, 0.05)).otherwise("no requests"),
			stat("How slow is the slowest service?", "99 % of its requests take no longer. Requests to the consumer wait for records on purpose.", "s",
				`max(service:traefik_service_request_duration_seconds:p99_rate5m{service=~"$service"} > 0)`, steps("blue")).otherwise("no requests"),
			stat("How many servers fail their health check?", "Servers that Traefik sends nothing to. Alerts: TraefikServerDown, TraefikServiceDown.", "none",
				`count(traefik_service_server_up{url!=""} == 0) or 0 * count(traefik_service_server_up{url!=""})`, zero("red")).otherwise("unknown"),
			stat("How long does the first certificate last?", "Time until the first certificate ends; Traefik renews it 30 days before. Alerts: TraefikCertificateExpiring, TraefikCertificateExpiringSoon.", "s",
				`min(traefik_tls_certs_not_after{cn!="TRAEFIK DEFAULT CERT"}) - time()`, downTo(21*day, 7*day)).otherwise("no certificate"),
		}},
		{"How does each service do?", []*panel{
			lines("How many requests does each service get?", "Requests a second.", "reqps",
				q(`service:traefik_service_requests:rate5m{service=~"$service"}`, "{{service}}")),
			lines("Which share fails?", "5xx among the answers of each service over 5 minutes. Alert: TraefikHigh5xx.", "percentunit",
				q(`service:traefik_service_errors_per_requests:ratio_rate5m{service=~"$service"}`, "{{service}}")).limits(upTo(0.01, 0.05)),
			lines("Which answers are there?", "Answers a second by status. 5xx is our fault, 429 a limit, other 4xx the client's.", "reqps",
				q(`sum by (code) (service_code:traefik_service_requests:rate5m{service=~"$service"})`, "{{code}}")).stacked(),
			lines("How long does half of the requests take?", "Half of the requests to each service take no longer.", "s",
				percentile("0.5", "service")...),
			lines("How long do 95 % of the requests take?", "95 % of the requests to each service take no longer.", "s",
				percentile("0.95", "service")...),
			lines("How long do 99 % of the requests take?", "99 % of the requests to each service take no longer. Requests to the consumer wait for records on purpose. Alert: TraefikLatencyHigh.", "s",
				percentile("0.99", "service")...),
			table("How is each service?", "Over the last minutes. Servers are those with a health check.",
				column{name: "Service", label: "service"},
				column{name: "Requests a second", unit: "reqps", expr: `service:traefik_service_requests:rate5m{service=~"$service"}`},
				column{name: "Fail", unit: "percentunit", levels: upTo(0.01, 0.05), expr: `service:traefik_service_errors_per_requests:ratio_rate5m{service=~"$service"}`},
				column{name: "99 % take", unit: "s", expr: `service:traefik_service_request_duration_seconds:p99_rate5m{service=~"$service"} >= 0`},
				column{name: "Servers up", unit: "none", levels: some, expr: `sum by (service) (traefik_service_server_up{url!="", service=~"$service"})`},
				column{name: "Servers", unit: "none", expr: `count by (service) (traefik_service_server_up{url!="", service=~"$service"})`},
				column{name: "Bytes a second in", unit: "Bps", expr: `sum by (service) (rate(traefik_service_requests_bytes_total{service=~"$service"}[$__rate_interval]))`},
				column{name: "Bytes a second out", unit: "Bps", expr: `sum by (service) (rate(traefik_service_responses_bytes_total{service=~"$service"}[$__rate_interval]))`},
			).size(columns, 8).sorted("Requests a second"),
		}},
		{"Which servers are well?", []*panel{
			states("Which servers pass their health check?", "Every server of services with a health check. One that fails gets no requests. Alerts: TraefikServerDown, TraefikServiceDown.",
				upOrDown, q(`min by (service, url) (traefik_service_server_up{url!="", service=~"$service"})`, "{{service}} {{url}}")).size(16, 8),
			lines("How many requests are repeated?", "Requests a second that Traefik sent again because it got no connection. Alert: TraefikRetriesHigh.", "reqps",
				q(`sum by (service) (rate(traefik_service_retries_total{service=~"$service"}[$__rate_interval]))`, "{{service}}")).otherwise("none"),
		}},
		{"How do routers and entry points do?", []*panel{
			lines("How many requests does each entry point get?", "Requests a second, those that no router takes (404) as well.", "reqps",
				q(`sum by (entrypoint) (rate(traefik_entrypoint_requests_total[$__rate_interval]))`, "{{entrypoint}}")),
			lines("How long do 99 % of the requests of an entry point take?", "99 % of the requests take no longer.", "s",
				percentile("0.99", "entrypoint")...),
			lines("How many connections are open?", "Open connections by entry point.", "none",
				q(`sum by (entrypoint) (traefik_open_connections or traefik_entrypoint_open_connections)`, "{{entrypoint}}")),
			lines("How many requests does each router get?", "Requests a second.", "reqps",
				q(`sum by (router) (rate(traefik_router_requests_total{service=~"$service"}[$__rate_interval]))`, "{{router}}")),
			lines("Which requests fail, by router?", "Answers a second with a status of 400 or more.", "reqps",
				q(`sum by (router, code) (rate(traefik_router_requests_total{code=~"[45]..", service=~"$service"}[$__rate_interval]))`, "{{code}} {{router}}")).otherwise("none"),
			lines("How long do 99 % of the requests of a router take?", "99 % of the requests take no longer.", "s",
				percentile("0.99", "router")...),
			lines("How many bytes pass?", "Bytes a second through all entry points, without headers.", "Bps",
				q(`sum(rate(traefik_entrypoint_requests_bytes_total[$__rate_interval]))`, "in"),
				q(`sum(rate(traefik_entrypoint_responses_bytes_total[$__rate_interval]))`, "out")),
			lines("Which versions of TLS are used?", "Requests a second by version and cipher; none without TLS.", "reqps",
				q(`sum by (tls_version, tls_cipher) (rate(traefik_entrypoint_requests_tls_total[$__rate_interval]))`, "{{tls_version}} {{tls_cipher}}")).otherwise("no TLS"),
			table("How long do the certificates last?", "Alerts: TraefikCertificateExpiring, TraefikCertificateExpiringSoon.",
				column{name: "Name", label: "cn"}, column{name: "Names", label: "sans"},
				column{name: "Ends in", unit: "s", levels: downTo(21*day, 7*day), expr: `min by (cn, sans) (traefik_tls_certs_not_after{cn!="TRAEFIK DEFAULT CERT"}) - time()`},
			).size(8, 8).otherwise("none"),
		}},
		{"Is Traefik itself well?", []*panel{
			lines("How often is the configuration loaded?", "Loads in a minute: containers that come and go. On version 2 also those that failed. Alert: TraefikConfigReloadFailed.", "short",
				q(`sum(rate(traefik_config_reloads_total[$__rate_interval])) * 60`, "loaded"),
				q(`sum(rate(traefik_config_reloads_failure_total[$__rate_interval])) * 60`, "failed")),
			lines("How much memory does it use?", "Resident memory.", "bytes",
				q(`sum by (instance) (process_resident_memory_bytes{job="traefik"})`, "{{instance}}")),
			lines("How much processor time does it use?", "1 is one core.", "none",
				q(`sum by (instance) (rate(process_cpu_seconds_total{job="traefik"}[$__rate_interval]))`, "{{instance}}")),
		}},
	},
}

// percentile is a percentile of the duration of requests, from Traefik's own buckets.
func percentile(quantile, of string) []query {
	selected := `service=~"$service"`
	if of == "entrypoint" {
		selected = `entrypoint!=""` // it has no service
	}
	return []query{q(`histogram_quantile(`+quantile+`, sum by (le, `+of+`) (rate(traefik_`+of+`_request_duration_seconds_bucket{`+selected+`}[$__rate_interval])))`, "{{"+of+"}}")}
}
