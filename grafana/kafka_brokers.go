package main

// The series of Kafka's throughput that count all topics together have no topic label: {topic=""}.

var kafkaBrokers = board{
	uid: "kafka-brokers", title: "Kafka brokers",
	about:     "Is each broker well, what does it do, and where do requests spend their time?",
	variables: []variable{brokerVariable, quantileVariable},
	rows: []row{
		{"Are the brokers well?", []*panel{
			stat("How many brokers do not run?", "Brokers that do not answer, or are not in the state running. Alerts: KafkaBrokerDown, KafkaBrokerNotRunning.", "none",
				`count(up{job="kafka", instance=~"$instance"}) - (count(kafka_server_kafkaserver_brokerstate{instance=~"$instance"} == 3) or 0 * count(up{job="kafka"}))`, zero("red")).otherwise("unknown"),
			stat("How many partitions have no leader?", "Such a partition can be neither written nor read. Alert: KafkaOfflinePartitions.", "none",
				`max(kafka_controller_kafkacontroller_offlinepartitionscount)`, zero("red")).otherwise("unknown"),
			stat("How many partitions refuse records?", "Partitions with fewer replicas in sync than min.insync.replicas. Alert: KafkaUnderMinIsrPartitions.", "none",
				`sum(kafka_server_replicamanager_underminisrpartitioncount{instance=~"$instance"})`, zero("red")).otherwise("unknown"),
			stat("How idle are the busiest request handlers?", "Share of the last minute in which they had nothing to do. Alert: KafkaRequestHandlersBusy.", "percentunit",
				`min(`+idleHandlers+`)`, downTo(0.3, 0.1)).otherwise("unknown"),
			stat("How idle are the busiest network threads?", "Share of the time in which they had nothing to do. Low for a minute after a start. Alert: KafkaNetworkThreadsBusy.", "percentunit",
				`min(kafka_network_socketserver_networkprocessoravgidlepercent{instance=~"$instance"})`, downTo(0.3, 0.1)).otherwise("unknown"),
			stat("How slow are produce requests?", "99 % of them take no longer on the slowest broker. Alert: KafkaProduceLatencyHigh.", "ms",
				`max(kafka_network_requestmetrics_totaltimems{request="Produce", quantile="0.99", instance=~"$instance"})`, upTo(250, 500)).otherwise("unknown"),
			table("How is each broker?", "A share of 100 % of the heap or of the file descriptors is all there is. Without its log cleaner, compacted topics grow. Alerts: KafkaHeapHigh, FileDescriptorsHigh, KafkaOfflineLogDirectory.",
				column{name: "Broker", label: "instance"},
				column{name: "State", meaning: []state{
					{"0", "not running", "red"}, {"1", "starting", "orange"}, {"2", "recovering", "orange"}, {"3", "running", "green"},
					{"6", "shutting down, waits for the controller", "orange"}, {"7", "shutting down", "orange"},
				}, expr: `max by (instance) (kafka_server_kafkaserver_brokerstate{instance=~"$instance"})`},
				column{name: "Up for", unit: "s", expr: `time() - max by (instance) (process_start_time_seconds{job="kafka", instance=~"$instance"})`},
				column{name: "Partitions", unit: "none", expr: `max by (instance) (kafka_server_replicamanager_partitioncount{instance=~"$instance"})`},
				column{name: "Leads", unit: "none", expr: `max by (instance) (kafka_server_replicamanager_leadercount{instance=~"$instance"})`},
				column{name: "Under-replicated", unit: "none", levels: zero("orange"), expr: `max by (instance) (kafka_server_replicamanager_underreplicatedpartitions{instance=~"$instance"})`},
				column{name: "Replicas offline", unit: "none", levels: zero("red"), expr: `max by (instance) (kafka_server_replicamanager_offlinereplicacount{instance=~"$instance"})`},
				column{name: "Log directories offline", unit: "none", levels: zero("red"), expr: `max by (instance) (kafka_log_logmanager_offlinelogdirectorycount{instance=~"$instance"})`},
				column{name: "Log cleaners dead", unit: "none", levels: zero("red"), expr: `max by (instance) (kafka_log_logcleaner_deadthreadcount{instance=~"$instance"})`},
				column{name: "Size on disk", unit: "bytes", expr: `sum by (instance) (kafka_log_log_size{instance=~"$instance"})`},
				column{name: "Heap", unit: "percentunit", levels: upTo(0.9, 0.97), expr: `max by (instance) (jvm_memory_used_bytes{job="kafka", area="heap", instance=~"$instance"} / jvm_memory_max_bytes{job="kafka", area="heap", instance=~"$instance"})`},
				column{name: "File descriptors", unit: "percentunit", levels: upTo(0.8, 0.95), expr: `max by (instance) (process_open_fds{job="kafka", instance=~"$instance"} / process_max_fds{job="kafka", instance=~"$instance"})`},
			).size(columns, 6),
		}},
		{"How much flows through?", []*panel{
			lines("How many records come in?", "Records a second, all topics.", "cps",
				q(`sum by (instance) (rate(kafka_server_brokertopicmetrics_messagesin_total{topic="", instance=~"$instance"}[$__rate_interval]))`, "{{instance}}")).size(6, 8),
			lines("How many bytes come in?", "Bytes a second from producers, as they sent them: compressed.", "Bps",
				q(`sum by (instance) (rate(kafka_server_brokertopicmetrics_bytesin_total{topic="", instance=~"$instance"}[$__rate_interval]))`, "{{instance}}")).size(6, 8),
			lines("How many bytes go out?", "Bytes a second to consumers, other brokers not counted.", "Bps",
				q(`sum by (instance) (rate(kafka_server_brokertopicmetrics_bytesout_total{topic="", instance=~"$instance"}[$__rate_interval]))`, "{{instance}}")).size(6, 8),
			lines("How many bytes are replicated?", "Bytes a second from and to other brokers; none with one broker.", "Bps",
				q(`sum by (instance) (rate(kafka_server_brokertopicmetrics_replicationbytesin_total{instance=~"$instance"}[$__rate_interval]))`, "{{instance}} in"),
				q(`sum by (instance) (rate(kafka_server_brokertopicmetrics_replicationbytesout_total{instance=~"$instance"}[$__rate_interval]))`, "{{instance}} out")).size(6, 8),
		}},
		{"Which requests are there, and which fail?", []*panel{
			lines("How many requests does each kind have?", "Requests a second by kind. FetchConsumer and FetchFollower wait for records on purpose.", "reqps",
				q(`sum by (request) (instance_request:kafka_network_requestmetrics_requests:rate5m{instance=~"$instance"})`, "{{request}}")),
			lines("Which answers carry an error?", "Answers a second by error, all brokers. Many errors are part of the protocol, such as a rebalance. Alert: KafkaRequestErrors.", "reqps",
				q(`request_error:kafka_network_requestmetrics_errors:rate5m{error!="NONE"} > 0`, "{{request}}: {{error}}")).otherwise("none"),
			lines("How many produce and fetch requests fail inside the broker?", "Requests a second that failed for a fault that is not the client's. Alert: KafkaProduceRequestsFailing.", "reqps",
				q(`sum by (instance) (rate(kafka_server_brokertopicmetrics_failedproducerequests_total{topic="", instance=~"$instance"}[$__rate_interval]))`, "{{instance}} produce"),
				q(`sum by (instance) (rate(kafka_server_brokertopicmetrics_failedfetchrequests_total{topic="", instance=~"$instance"}[$__rate_interval]))`, "{{instance}} fetch")),
			lines("How long do requests take?", "99 % of the requests of each kind take no longer, on the slowest broker.", "ms",
				q(`max by (request) (kafka_network_requestmetrics_totaltimems{quantile="0.99", request!~"Fetch.*", instance=~"$instance"})`, "{{request}}")),
			lines("How many requests wait?", "Requests in the queue of each broker, which holds 500 (queued.max.requests). Alert: KafkaRequestQueueFilling.", "none",
				q(`max by (instance) (kafka_network_requestchannel_requestqueuesize{instance=~"$instance"})`, "{{instance}} requests"),
				q(`max by (instance) (kafka_network_requestchannel_responsequeuesize{processor="", instance=~"$instance"})`, "{{instance}} answers")),
			lines("How many records are refused?", "Records a second that were refused as too large (bytes), out of sequence, damaged, or without a key in a compacted topic.", "short",
				q(`sum(rate(kafka_server_brokertopicmetrics_bytesrejected_total{instance=~"$instance"}[$__rate_interval]))`, "too large, in bytes"),
				q(`sum(rate(kafka_server_brokertopicmetrics_invalidoffsetorsequencerecords_total{instance=~"$instance"}[$__rate_interval]))`, "out of sequence"),
				q(`sum(rate(kafka_server_brokertopicmetrics_invalidmessagecrcrecords_total{instance=~"$instance"}[$__rate_interval]))`, "damaged"),
				q(`sum(rate(kafka_server_brokertopicmetrics_nokeycompactedtopicrecords_total{instance=~"$instance"}[$__rate_interval]))`, "without a key")),
		}},
		{"Where do requests spend their time?", []*panel{
			latency("Produce", "Remote is the wait for the other replicas."),
			latency("FetchConsumer", "Remote is the wait for records that are not there yet, which is no fault."),
			latency("FetchFollower", "Other brokers that fetch; none with one broker. Remote is the wait for records that are not there yet."),
		}},
		{"Are the threads busy?", []*panel{
			lines("How idle are the request handlers?", "Share of the last minute in which they had nothing to do. Alert: KafkaRequestHandlersBusy.", "percentunit",
				q(`max by (instance) (`+idleHandlers+`)`, "{{instance}}")).share().limits(downTo(0.3, 0.1)),
			lines("How idle are the network threads?", "Share of the time in which they had nothing to do. Alert: KafkaNetworkThreadsBusy.", "percentunit",
				q(`max by (instance) (kafka_network_socketserver_networkprocessoravgidlepercent{instance=~"$instance"})`, "{{instance}}")).share().limits(downTo(0.3, 0.1)),
			lines("How many operations wait in purgatory?", "Requests that wait for something: produce for replicas, fetch for records. Growing without end is a fault.", "none",
				q(`sum by (delayedoperation) (kafka_server_delayedoperationpurgatory_numdelayedoperations{instance=~"$instance"})`, "{{delayedoperation}}")),
		}},
		{"Who is connected?", []*panel{
			lines("How many connections are open?", "Connections by listener.", "none",
				q(`sum by (listener) (kafka_server_socket_server_metrics_connection_count{instance=~"$instance"})`, "{{listener}}")),
			lines("How many connections are made?", "New connections a second by listener. Many mean clients that connect for every record.", "ops",
				q(`sum by (listener) (rate(kafka_server_socket_server_metrics_connection_creation_total{instance=~"$instance"}[$__rate_interval]))`, "{{listener}}")),
			lines("How many logins fail?", "Failed authentications a second by listener; none without SASL or client certificates.", "ops",
				q(`sum by (listener) (rate(kafka_server_socket_server_metrics_failed_authentication_total{instance=~"$instance"}[$__rate_interval]))`, "{{listener}}")),
		}},
		{"Are the replicas in sync?", []*panel{
			lines("Which brokers lack replicas?", "Partitions led by the broker with fewer replicas in sync than they should have. Alert: KafkaUnderReplicatedPartitions.", "none",
				q(`max by (instance) (kafka_server_replicamanager_underreplicatedpartitions{instance=~"$instance"})`, "{{instance}}")).size(6, 8).limits(zero("orange")),
			lines("Do replicas leave and come back?", "Changes of in-sync replicas a second. Leaving again and again means a slow disk or network. Alert: KafkaIsrShrinking.", "ops",
				q(`sum by (instance) (rate(kafka_server_replicamanager_isrshrinks_total{instance=~"$instance"}[$__rate_interval]))`, "{{instance}} left"),
				q(`sum by (instance) (rate(kafka_server_replicamanager_isrexpands_total{instance=~"$instance"}[$__rate_interval]))`, "{{instance}} came back")).size(6, 8),
			lines("How far is the slowest replica behind?", "Records that a broker's slowest replica is behind its leader. Alert: KafkaReplicaLagHigh.", "short",
				q(`max by (instance) (kafka_server_replicafetchermanager_maxlag{instance=~"$instance"})`, "{{instance}}")).size(6, 8).limits(steps("green", step{10000, "orange"})),
			lines("How many partitions move, or cannot?", "Partitions that a reassignment moves, and those whose fetcher gave up after an error.", "none",
				q(`sum by (instance) (kafka_server_replicamanager_reassigningpartitions{instance=~"$instance"})`, "{{instance}} move"),
				q(`sum by (instance) (kafka_server_replicafetchermanager_failedpartitionscount{instance=~"$instance"})`, "{{instance}} gave up")).size(6, 8),
		}},
		{"Does the disk keep up?", []*panel{
			lines("How long do flushes take?", "99 % of the flushes to disk take no longer. Alert: KafkaLogFlushSlow.", "ms",
				q(`max by (instance) (kafka_log_logflushstats_logflushrateandtimems{quantile="0.99", instance=~"$instance"})`, "{{instance}}")).limits(steps("green", step{1000, "orange"})),
			lines("How many bytes does the broker write and read?", "Bytes a second that its process moves to and from disks, by the kernel's count.", "Bps",
				q(`sum by (instance) (rate(kafka_server_kafkaserver_linux_disk_write_bytes{instance=~"$instance"}[$__rate_interval]))`, "{{instance}} writes"),
				q(`sum by (instance) (rate(kafka_server_kafkaserver_linux_disk_read_bytes{instance=~"$instance"}[$__rate_interval]))`, "{{instance}} reads")),
			bars("Which topics take most room?", "Size of the logs on the chosen brokers, the 10 largest topics.", "bytes", steps("blue"),
				q(`topk(10, sum by (topic) (kafka_log_log_size{instance=~"$instance"}))`, "{{topic}}")).to("topics", "Topics"),
		}},
		{"Is the Java machine well?", []*panel{
			lines("How full is the heap?", "Heap in use as a share of its limit. Going up and down is normal. Alert: KafkaHeapHigh.", "percentunit",
				q(`max by (instance) (jvm_memory_used_bytes{job="kafka", area="heap", instance=~"$instance"} / jvm_memory_max_bytes{job="kafka", area="heap", instance=~"$instance"})`, "{{instance}}")).size(6, 8).share().limits(steps("green", step{0.9, "orange"})),
			lines("How much time goes into garbage collection?", "Share of the time. Alert: KafkaGcTimeHigh.", "percentunit",
				q(`sum by (instance) (rate(jvm_gc_collection_seconds_sum{job="kafka", instance=~"$instance"}[$__rate_interval]))`, "{{instance}}")).size(6, 8).limits(steps("green", step{0.1, "orange"})),
			lines("How many threads are there?", "Threads of the process.", "none",
				q(`max by (instance) (jvm_threads_current{job="kafka", instance=~"$instance"})`, "{{instance}}")).size(6, 8),
			lines("How much processor time does it use?", "1 is one core.", "none",
				q(`sum by (instance) (rate(process_cpu_seconds_total{job="kafka", instance=~"$instance"}[$__rate_interval]))`, "{{instance}}")).size(6, 8),
		}},
	},
}

// Brokers from 4.3 on tell the broker's threads from the controller's in the same process.
const idleHandlers = `kafka_server_kafkarequesthandlerpool_brokerrequesthandleravgidle_percent{instance=~"$instance"} or kafka_server_kafkarequesthandlerpool_requesthandleravgidle_percent{instance=~"$instance"}`

// latency takes the time of a kind of request apart.
func latency(request, about string) *panel {
	part := func(metric, name string) query {
		return q(`max(kafka_network_requestmetrics_`+metric+`{request="`+request+`", quantile="$quantile", instance=~"$instance"})`, name)
	}
	return lines("Where does "+request+" spend its time?",
		"The chosen percentile of each part, on the slowest broker. Percentiles do not add up exactly: the whole is an upper bound. "+about, "ms",
		part("requestqueuetimems", "waits for a handler"),
		part("localtimems", "local: the log"),
		part("remotetimems", "remote"),
		part("responsequeuetimems", "waits for a network thread"),
		part("responsesendtimems", "sending"),
		part("throttletimems", "throttled"),
	).stacked()
}
