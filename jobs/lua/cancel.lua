-- Cancels a queued job at once, asks a running one to stop. ARGV: prefix, id
-- Returns {'ok', hash}, {'missing'} or {'wrong_state', state}
local job = load(ARGV[2])
if not job or job.deleted ~= '' then return {'missing'} end
if job.state == 'queued' then
  move(job, 'cancel', {cancel = '1', progress = ''})
elseif job.state == 'running' then
  if job.cancel ~= '1' then touch(job, {cancel = '1'}, 'job.cancel_requested', nil, true) end
elseif job.state ~= 'cancelled' then
  return {'wrong_state', job.state}
end
return answer('ok', job.id)
