-- Writes how far a running job is. ARGV: prefix, id, attempt, nonce, progress (JSON)
-- Returns {'ok', cancel, finish} or {'stale', why}
local job = load(ARGV[2])
if not holds(job, ARGV[3], ARGV[4]) then return refuse_stale(job, 'progress') end
local entry = touch(job, {progress = ARGV[5]}, 'job.progress', ARGV[5], false)
-- Webhooks hear of it seldom, and only if an endpoint wants to.
if redis.call('EXISTS', P .. 'tenant:' .. job.tenant .. ':webhooks:job.progress') == 1
  and redis.call('SET', P .. 'job:' .. job.id .. ':told', '1',
    'PX', LIMITS.webhook_progress_ms, 'NX') then
  redis.call('XADD', P .. 'outbox', '*', 'told', 'job.progress', 'webhook', '', unpack(entry))
end
return {'ok', job.cancel, job.finish}
