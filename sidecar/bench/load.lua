-- Each request is the same; nothing of this runs while requests are sent.
wrk.method = "POST"
wrk.headers["Content-Type"] = os.getenv("CONTENT_TYPE")
wrk.body = io.open(os.getenv("BODY")):read("*a")

function done(summary, latency)
  local e = summary.errors
  io.write(string.format('RESULT {"Requests":%d,"Seconds":%f,"P50":%d,"P99":%d,"Errors":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
