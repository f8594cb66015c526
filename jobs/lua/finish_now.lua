-- Asks a running job to keep the best so far and end. ARGV: prefix, id
-- Returns {'ok', hash}, {'missing'} or {'wrong_state', state}
local job = load(ARGV[2])
if not job or job.deleted ~= '' then return {'missing'} end
if job.state ~= 'running' then return {'wrong_state', job.state} end
if job.finish ~= '1' then touch(job, {finish = '1'}, 'job.finish_requested', nil, true) end
return answer('ok', job.id)
