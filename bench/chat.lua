-- For wrk: one chat request of about 1 KB, again and again; prints one JSON line at the end.
local text = string.rep("Summarise the quarterly report for the operations team, with the risks. ", 11)
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. (os.getenv("BENCH_KEY") or "none")
wrk.body = '{"model":"mock","messages":[{"role":"user","content":"' .. text .. '"}],'
  .. '"temperature":0.2,"top_p":0.95,"max_tokens":256,"stream":false}'

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('JSON {"requests":%d,"seconds":%.4f,"errors":%d,"p50_us":%d,"p99_us":%d}\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
