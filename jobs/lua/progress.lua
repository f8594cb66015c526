-- Writes how far a running job is. ARGV: prefix, id, attempt, nonce, progress (JSON)
-- Returns {'ok', cancel, finish} or {'stale', why}
local job = load(ARGV[2])
if not holds(job, ARGV[3], ARGV[4]) then return refuse_stale(job, 'progress') end
touch(job, {progress = ARGV[5]}, 'job.progress', ARGV[5], false)
return {'ok', job.cancel, job.finish}
