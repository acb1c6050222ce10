#include "sim/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace firn::sim {
namespace {

using Json = nlohmann::ordered_json;

double share(double part, double all) { return all > 0 ? part / all : 0; }
double share(std::uint64_t part, std::uint64_t all) {
  return share(static_cast<double>(part), static_cast<double>(all));
}
// Enough digits to compare, few enough to read; the same text wherever the same number was computed.
double round4(double value) {
  if (value == 0) return 0;
  const double scale = std::pow(10.0, 5 - std::ceil(std::log10(std::abs(value))));
  return std::round(value * scale) / scale;
}

Json to_json(const Percentiles& p) {
  return {{"mean", round4(p.mean)}, {"p50", round4(p.p50)}, {"p90", round4(p.p90)},
          {"p95", round4(p.p95)},   {"p99", round4(p.p99)}, {"max", round4(p.most)}};
}

Json samples_json(const EngineResult& r) {
  Json samples = Json::array();
  for (const Sample& s : r.samples)
    samples.push_back({{"seconds", round4(s.seconds)},
                       {"pool_live", round4(s.pool_live)},
                       {"pool_cached", round4(s.pool_cached)},
                       {"host", round4(s.host)},
                       {"disk", round4(s.disk)},
                       {"waiting", s.waiting},
                       {"running", s.running},
                       {"host_up_bytes", s.host_up_bytes},
                       {"host_down_bytes", s.host_down_bytes},
                       {"disk_up_bytes", s.disk_up_bytes},
                       {"disk_down_bytes", s.disk_down_bytes}});
  return samples;
}

Json make_json(const EngineOptions& o, const EngineResult& r) {
  const std::uint64_t tokens = r.hit_tokens_pool + r.hit_tokens_host + r.hit_tokens_disk;
  const std::uint64_t hits = r.hits_pool + r.hits_host + r.hits_disk;
  return {
      {"complete", r.complete},
      {"through_manager", r.through_manager},
      {"device", o.device.name},
      {"model", o.model.name},
      {"policy", o.policy},
      {"host_policy", o.host_policy.empty() ? o.policy : o.host_policy},
      {"exclusive", o.exclusive},
      {"codec_ratio", o.codec_ratio},
      {"codec_bytes_per_s", o.codec_bytes_per_s},
      {"codec_source", o.codec_source.empty() ? "assumed" : o.codec_source},
      {"block_tokens", r.block_tokens},
      {"block_bytes", r.block_bytes},
      {"pool_blocks", r.pool_blocks},
      {"host_blocks", r.host_blocks},
      {"disk_blocks", r.disk_blocks},
      {"requests", r.requests},
      {"finished", r.finished},
      {"refused", r.refused},
      {"seconds", round4(r.seconds)},
      {"input_tokens", r.input_tokens},
      {"output_tokens", r.output_tokens},
      {"blocks", r.blocks},
      {"hits", {{"pool", r.hits_pool}, {"host", r.hits_host}, {"disk", r.hits_disk}}},
      {"block_hit_ratio", round4(share(hits, r.blocks))},
      {"token_hit_ratio", round4(share(tokens, r.input_tokens))},
      {"token_hits", {{"pool", r.hit_tokens_pool}, {"host", r.hit_tokens_host}, {"disk", r.hit_tokens_disk}}},
      {"misses",
       {{"never_stored", r.miss_never_stored},
        {"evicted", r.miss_evicted},
        {"after_miss", r.miss_after_miss},
        {"recompute_cheaper", r.miss_recompute_cheaper},
        {"tail", r.miss_tail}}},
      {"ttft_s", to_json(r.ttft_s)},
      {"token_s", to_json(r.tpot_s)},
      {"queue_s", to_json(r.queue_s)},
      {"preemptions", r.preemptions},
      {"recomputed_tokens", r.recomputed_tokens},
      {"bytes",
       {{"host_down", r.host_down_bytes},
        {"host_up", r.host_up_bytes},
        {"disk_down", r.disk_down_bytes},
        {"disk_up", r.disk_up_bytes}}},
      {"evictions", {{"pool", r.pool_evictions}, {"host", r.host_evictions}}},
      {"stored_blocks", r.stored_blocks},
      {"stored_read_again", r.stored_read_again},
      {"eviction_age_s", to_json(r.eviction_age_s)},
      {"busy",
       {{"compute", round4(share(r.compute_busy_s, r.seconds))},
        {"prefill", round4(share(r.prefill_s, r.seconds))},
        {"host_up", round4(share(r.host_up_busy_s, r.seconds))},
        {"host_down", round4(share(r.host_down_busy_s, r.seconds))},
        {"waiting_for_memory", round4(share(r.waiting_for_memory_s, r.seconds))}}},
      {"cost", round4(r.cost)},
      {"cost_per_million_tokens", round4(share(r.cost * 1e6, static_cast<double>(r.input_tokens + r.output_tokens)))},
      {"bad_line_count", r.bad_line_count},
      {"advice", {{"bottleneck", advise(o, r).bottleneck}, {"next", advise(o, r).next}}},
      {"samples", samples_json(r)}};
}

std::string gib(double bytes) { return fmt::format("{:.1f} GiB", bytes / (1024.0 * 1024 * 1024)); }
std::string time(double seconds) {
  return seconds < 1 ? fmt::format("{:.0f} ms", seconds * 1e3) : fmt::format("{:.1f} s", seconds);
}

constexpr const char* kPage = R"page(<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>firn simulate</title><style>
:root{--bg:#fff;--fg:#1b1f24;--dim:#667;--line:#dde;--a:#2563eb;--b:#0d9488;--c:#d97706;--d:#9333ea}
@media(prefers-color-scheme:dark){:root{--bg:#14171c;--fg:#e6e8ec;--dim:#99a;--line:#2c313a;--a:#6ea8fe;--b:#4fd1c5;--c:#f6ad55;--d:#c99bff}}
body{font:15px/1.5 system-ui,sans-serif;background:var(--bg);color:var(--fg);max-width:62rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.3rem}h2{font-size:1rem;margin:1.6rem 0 .3rem}p.dim,td.dim{color:var(--dim)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.6rem}
.card{border:1px solid var(--line);border-radius:8px;padding:.5rem .8rem}.card b{display:block;font-size:1.25rem}
svg{width:100%;height:170px;border:1px solid var(--line);border-radius:8px}text{fill:var(--dim);font-size:11px}
#tip{position:fixed;pointer-events:none;background:var(--fg);color:var(--bg);padding:.2rem .5rem;border-radius:5px;font-size:12px;display:none;white-space:pre}
table{border-collapse:collapse;width:100%}td{padding:.15rem .6rem .15rem 0;border-bottom:1px solid var(--line)}td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.bar{width:45%}td.bar i{display:block;height:.8em;background:var(--a);border-radius:2px}
.key span{margin-right:1rem}.key i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.3em}
</style></head><body><h1 id="title"></h1><p id="say"></p><div class="cards" id="cards"></div><div id="tables"></div><div id="charts"></div>
<div id="tip"></div><script type="application/json" id="data">)page";

constexpr const char* kScript = R"page(</script><script>
const d=JSON.parse(document.getElementById('data').textContent),$=i=>document.getElementById(i);
$('title').textContent=`${d.trace} on ${d.report.device}, ${d.report.model}`;
const r=d.report;$('say').textContent=r.advice.bottleneck+' '+r.advice.next;
const pct=x=>(100*x).toFixed(1)+' %',sec=x=>x<1?(1000*x).toFixed(0)+' ms':x.toFixed(1)+' s',gib=b=>(b/2**30).toFixed(2)+' GiB';
for(const [k,v,id] of [['input tokens from cache',pct(r.token_hit_ratio),'token_hit_ratio'],['TTFT p50',sec(r.ttft_s.p50),'ttft_p50'],['TTFT p95',sec(r.ttft_s.p95),'ttft_p95'],['a token p50',sec(r.token_s.p50),'token_p50'],['requests finished',r.finished+' of '+r.requests,'finished'],['preemptions',r.preemptions,'preemptions'],['to the host',gib(r.bytes.host_down),'host_down'],['from the host',gib(r.bytes.host_up),'host_up'],['dollars a million tokens',r.cost_per_million_tokens.toFixed(3),'cost']]){
const c=document.createElement('div');c.className='card';const t=document.createElement('span');t.textContent=k;const b=document.createElement('b');b.textContent=v;b.id='v_'+id;c.append(b,t);$('cards').append(c)}
function table(name,rows){const h=document.createElement('h2');h.textContent=name;const t=document.createElement('table');
for(const [k,v,share,id] of rows){const tr=t.insertRow(),a=tr.insertCell(),n=tr.insertCell(),b=tr.insertCell();a.textContent=k;n.textContent=v;n.className='n';n.id='v_'+id;b.className='bar';const i=document.createElement('i');i.style.width=(100*Math.min(1,share)).toFixed(2)+'%';b.append(i)}$('tables').append(h,t)}
const of=x=>r.blocks?x/r.blocks:0,words={never_stored:'never computed before, or still being computed',evicted:'computed before, and gone from every tier',after_miss:'here, but behind a block that is not',recompute_cheaper:'in a lower tier, and quicker to compute than to load',tail:'holds the last token, which is always computed'};
table('Where the blocks of prompts came from (share of '+r.blocks+' blocks)',['pool','host','disk'].map(k=>[k,r.hits[k]+' ('+pct(of(r.hits[k]))+')',of(r.hits[k]),'hits_'+k]));
table('Why the rest missed',Object.keys(r.misses).map(k=>[words[k],r.misses[k]+' ('+pct(of(r.misses[k]))+')',of(r.misses[k]),'miss_'+k]));
table('Age of evicted blocks, since their last use',['p50','p90','p99','max'].map(k=>[k,sec(r.eviction_age_s[k]),r.eviction_age_s.max?r.eviction_age_s[k]/r.eviction_age_s.max:0,'age_'+k]));
table('Time to the first token',['p50','p90','p95','p99'].map(k=>[k,sec(r.ttft_s[k]),r.ttft_s.p99?r.ttft_s[k]/r.ttft_s.p99:0,'ttft_row_'+k]));
const ns='http://www.w3.org/2000/svg',s=r.samples,W=900,H=170,P=34;
function chart(name,series,fmt){const h=document.createElement('h2');h.textContent=name;const key=document.createElement('div');key.className='key';
const v=document.createElementNS(ns,'svg');v.setAttribute('viewBox',`0 0 ${W} ${H}`);v.setAttribute('preserveAspectRatio','none');
const top=Math.max(1e-9,...series.flatMap(q=>s.map(q[1]))),end=s.length?s[s.length-1].seconds:1,X=t=>P+t/end*(W-P-8),Y=y=>H-18-y/top*(H-30);
for(const q of series){const l=document.createElementNS(ns,'polyline');l.setAttribute('points',s.map(p=>X(p.seconds)+','+Y(q[1](p))).join(' '));l.setAttribute('fill','none');l.setAttribute('stroke',`var(--${q[2]})`);l.setAttribute('stroke-width','2');v.append(l);
const e=document.createElement('span'),i=document.createElement('i');i.style.background=`var(--${q[2]})`;e.append(i,q[0]);key.append(e)}
for(const [x,y,t] of [[2,Y(top)+4,fmt(top)],[2,Y(0),'0'],[W-70,H-4,(end/60).toFixed(1)+' min']]){const e=document.createElementNS(ns,'text');e.setAttribute('x',x);e.setAttribute('y',y);e.textContent=t;v.append(e)}
v.onmousemove=m=>{const b=v.getBoundingClientRect(),t=((m.clientX-b.left)/b.width*W-P)/(W-P-8)*end;let p=s[0];for(const q of s)if(Math.abs(q.seconds-t)<Math.abs(p.seconds-t))p=q;if(!p)return;
const o=$('tip');o.style.display='block';o.style.left=Math.min(m.clientX+12,innerWidth-190)+'px';o.style.top=m.clientY+12+'px';o.textContent=(p.seconds/60).toFixed(1)+' min\n'+series.map(q=>q[0]+': '+fmt(q[1](p))).join('\n')};
v.onmouseleave=()=>$('tip').style.display='none';$('charts').append(h,key,v)}
chart('How full the tiers are',[['pool, held',p=>p.pool_live,'a'],['pool, held or cached',p=>p.pool_live+p.pool_cached,'b'],['host',p=>p.host,'c'],['disk',p=>p.disk,'d']],pct);
chart('Requests',[['waiting',p=>p.waiting,'c'],['running',p=>p.running,'a']],x=>Math.round(x));
chart('Bytes over the host link, an interval',[['to the host',p=>p.host_down_bytes,'c'],['from the host',p=>p.host_up_bytes,'b']],gib);
if(r.disk_blocks)chart('Bytes over the disk link, an interval',[['to the disk',p=>p.disk_down_bytes,'c'],['from the disk',p=>p.disk_up_bytes,'b']],gib);
</script></body></html>
)page";

}  // namespace

std::string report_json(const EngineOptions& options, const EngineResult& result) {
  return make_json(options, result).dump(2) + "\n";
}

Advice advise(const EngineOptions& o, const EngineResult& r) {
  const double refused = share(r.refused, r.requests), compute = share(r.compute_busy_s, r.seconds);
  const double link = std::max(share(r.host_down_busy_s, r.seconds), share(r.host_up_busy_s, r.seconds));
  const double memory = share(r.waiting_for_memory_s, r.seconds), prefill = share(r.prefill_s, r.compute_busy_s);
  // A manager tells why the first block of a prompt is missing; the others behind it are missing for the same reason.
  const double behind = r.through_manager ? share(r.miss_evicted, r.miss_evicted + r.miss_never_stored) : 1.0;
  const double lost = share(r.miss_evicted, r.blocks) + behind * share(r.miss_after_miss, r.blocks);
  const std::string more_host = fmt::format(
      "a larger host tier (host.budget is {}): {:.0f} % of the prompt blocks were computed before and were gone",
      gib(static_cast<double>(o.host_bytes)), 100 * lost);
  const double most = std::max(compute, link);
  if (most > 0.95 && r.queue_s.p50 > 60)
    return {
        fmt::format("Too much load: the {} is busy {:.0f} % of the time, and half of the requests wait {} or longer "
                    "for their turn{}.",
                    link > compute ? "link to the host" : "device", 100 * most, time(r.queue_s.p50),
                    refused > 0.02 ? fmt::format("; {:.0f} % are longer than the pool and refused", 100 * refused)
                                   : std::string()),
        fmt::format("Try {}.", lost > 0.1 && o.host_bytes < (std::uint64_t{1} << 40)
                                   ? more_host + "; or a faster device, or several"
                                   : "a faster device, or several: more memory would not be enough")};
  if (refused > 0.02)
    return {fmt::format("The pool is too small for {:.0f} % of the requests: they are longer than its {} tokens.",
                        100 * refused, r.pool_blocks * r.block_tokens),
            "Try a larger pool.budget, or a model with fewer bytes a token."};
  if (link > 0.85)
    return {fmt::format("The link to the host is the bottleneck: busy {:.0f} % of the time.", 100 * link),
            "Try a codec with a higher ratio, or store only what is used twice."};
  if (compute > 0.85 && prefill > 0.5)
    return {fmt::format("Computing prompts is the bottleneck: the device is busy {:.0f} % of the time, {:.0f} % of "
                        "that with prompts.",
                        100 * compute, 100 * prefill),
            lost > 0.05
                ? "Try " + more_host + "."
                : "More memory would not help: what is missed was never computed before. Try a faster device, or two."};
  if (memory > 0.3)
    return {fmt::format("Pool memory is the bottleneck: for {:.0f} % of the time requests waited only for blocks.",
                        100 * memory),
            "Try a larger pool.budget; or fewer requests at once."};
  if (compute > 0.85)
    return {fmt::format("Memory bandwidth while decoding is the bottleneck: the device is busy {:.0f} % of the time.",
                        100 * compute),
            "Try more requests in a batch (max_sequences), or a device with more bandwidth."};
  return {fmt::format("Nothing is saturated: the device is busy {:.0f} % of the time.", 100 * compute),
          lost > 0.05 ? "For shorter waits try " + more_host + "."
                      : "Try a smaller or slower machine, or more load (--time-scale 2)."};
}

std::string report_text(const std::string& trace, const EngineOptions& o, const EngineResult& r) {
  const Advice advice = advise(o, r);
  std::string text;
  const auto line = [&text](const char* name, const std::string& what) {
    text += fmt::format("{:<14}{}\n", name, what);
  };
  text += fmt::format("{} on {}, {}, policy {}{}\n\n", trace, o.device.name, o.model.name, o.policy,
                      r.complete ? "" : " (stopped early: what follows is a part)");
  line("memory", fmt::format("pool {} = {} tokens; host {} = {} tokens", gib(static_cast<double>(o.pool_bytes)),
                             r.pool_blocks * r.block_tokens, gib(static_cast<double>(o.host_bytes)),
                             r.host_blocks * r.block_tokens));
  if (r.host_blocks > 0 && r.through_manager)  // which has no speed of a codec
    line("codec", fmt::format("below the pool: ratio {:.2f}, {}", o.codec_ratio,
                              o.codec_source.empty() ? "assumed" : "measured: " + o.codec_source));
  if (r.host_blocks > 0 && !r.through_manager)
    line("codec", fmt::format("below the pool: ratio {:.2f}, {:.1f} GB/s, {}", o.codec_ratio, o.codec_bytes_per_s / 1e9,
                              o.codec_source.empty() ? "both assumed (--codec-figures takes measured ones)"
                                                     : "measured: " + o.codec_source));
  line("requests",
       fmt::format("{} in {:.1f} min; {} finished, {} refused", r.requests, r.seconds / 60, r.finished, r.refused));
  line("cache hits",
       fmt::format("{:.1f} % of the input tokens ({:.1f} pool, {:.1f} host, {:.1f} disk)",
                   100 * share(r.hit_tokens_pool + r.hit_tokens_host + r.hit_tokens_disk, r.input_tokens),
                   100 * share(r.hit_tokens_pool, r.input_tokens), 100 * share(r.hit_tokens_host, r.input_tokens),
                   100 * share(r.hit_tokens_disk, r.input_tokens)));
  line("misses",
       fmt::format("{:.1f} % of the blocks never seen, {:.1f} % evicted, {:.1f} % behind one that was, {:.1f} % "
                   "cheaper to compute",
                   100 * share(r.miss_never_stored, r.blocks), 100 * share(r.miss_evicted, r.blocks),
                   100 * share(r.miss_after_miss, r.blocks), 100 * share(r.miss_recompute_cheaper, r.blocks)));
  line("first token", fmt::format("p50 {}, p95 {}, p99 {}; of that in the queue p50 {}, p95 {}", time(r.ttft_s.p50),
                                  time(r.ttft_s.p95), time(r.ttft_s.p99), time(r.queue_s.p50), time(r.queue_s.p95)));
  line("each token",
       fmt::format("p50 {}, p95 {}; {} preemptions", time(r.tpot_s.p50), time(r.tpot_s.p95), r.preemptions));
  line("busy",
       fmt::format("device {:.0f} % (prompts {:.0f} %), link down {:.0f} %, up {:.0f} %; memory awaited {:.0f} %",
                   100 * share(r.compute_busy_s, r.seconds), 100 * share(r.prefill_s, r.seconds),
                   100 * share(r.host_down_busy_s, r.seconds), 100 * share(r.host_up_busy_s, r.seconds),
                   100 * share(r.waiting_for_memory_s, r.seconds)));
  line("moved", fmt::format("{} to the host, {} back; {:.0f} % of the stored blocks were read again",
                            gib(static_cast<double>(r.host_down_bytes)), gib(static_cast<double>(r.host_up_bytes)),
                            100 * share(r.stored_read_again, r.stored_blocks)));
  line("cost", fmt::format("{:.3f} dollars a million tokens at {:.2f} an hour, which is assumed",
                           share(r.cost * 1e6, static_cast<double>(r.input_tokens + r.output_tokens)),
                           o.device.price_per_hour));
  return text + "\n" + advice.bottleneck + "\n" + advice.next + "\n";
}

std::string report_html(const std::string& trace, const EngineOptions& options, const EngineResult& result) {
  std::string data = Json{{"trace", trace}, {"report", make_json(options, result)}}.dump();
  // Inside a script element only "</" could end it.
  for (std::size_t at = 0; (at = data.find("</", at)) != std::string::npos; at += 3) data.replace(at, 2, "<\\/");
  return kPage + data + kScript;
}

}  // namespace firn::sim
