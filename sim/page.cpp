#include "sim/page.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace firn::sim {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kHead = R"page(<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>firn</title><style>
:root{--bg:#fff;--fg:#1b1f24;--dim:#566;--line:#d5dae3;--c0:#2563eb;--c1:#0d9488;--c2:#c2650a;--c3:#9333ea;--c4:#be123c;--c5:#4d7c0f}
@media(prefers-color-scheme:dark){:root{--bg:#14171c;--fg:#e6e8ec;--dim:#9aa3ad;--line:#333a45;--c0:#6ea8fe;--c1:#4fd1c5;--c2:#f6ad55;--c3:#c99bff;--c4:#fb7185;--c5:#a3e635}}
*{box-sizing:border-box}body{font:15px/1.5 system-ui,sans-serif;background:var(--bg);color:var(--fg);max-width:62rem;margin:1.5rem auto;padding:0 1rem}
h1{font-size:1.3rem;overflow-wrap:anywhere}h2{font-size:1rem;margin:1.6rem 0 .3rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.6rem}
.card{border:1px solid var(--line);border-radius:8px;padding:.5rem .8rem}.card b{display:block;font-size:1.2rem}.card span{color:var(--dim);font-size:.9rem}
svg{width:100%;height:210px;display:block}text{fill:var(--dim);font-size:11px}.grid{stroke:var(--line)}.axis{stroke:var(--dim)}
#tip{position:fixed;pointer-events:none;background:var(--fg);color:var(--bg);padding:.2rem .5rem;border-radius:5px;font-size:12px;display:none;white-space:pre;z-index:2}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}td,th{padding:.15rem .6rem .15rem 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{color:var(--dim);font-weight:normal}td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}td.bar{width:35%}
td.bar i{display:block;height:.8em;margin-top:.35em;background:var(--c0);border-radius:2px}
.key span{margin-right:1rem}.key i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.3em}.dim,li{color:var(--dim)}
</style></head><body><h1 id="title"></h1><p id="say"></p><div class="cards" id="cards"></div><div id="bars"></div><div id="tables"></div><div id="charts"></div>
<h2 id="sethead">Settings</h2><div class="wide"><table id="settings"></table></div><h2 id="asshead">What is assumed</h2><ul id="assumptions"></ul>
<div id="tip"></div><script type="application/json" id="data">)page";

constexpr const char* kScript = R"page(</script><script>
const read=i=>JSON.parse(document.getElementById(i).textContent),$=i=>document.getElementById(i),d=read('page');
const make=(tag,text,cls)=>{const e=document.createElement(tag);if(text!==undefined)e.textContent=text;if(cls)e.className=cls;return e};
document.title=d.title;$('title').textContent=d.title;$('say').textContent=d.say;
for(const c of d.cards){const e=make('div',undefined,'card'),b=make('b',c.value);b.id='v_'+c.id;e.append(b,make('span',c.name));$('cards').append(e)}
for(const t of d.bars){const e=make('table');for(const r of t.rows){const tr=e.insertRow(),a=tr.insertCell(),n=tr.insertCell(),b=tr.insertCell();a.textContent=r.name;n.textContent=r.value;n.className='n';if(r.id)n.id='v_'+r.id;
b.className='bar';const i=make('i');i.style.width=(100*Math.min(1,r.share)).toFixed(2)+'%';b.append(i)}$('bars').append(make('h2',t.title),e)}
for(const t of d.tables){const w=make('div',undefined,'wide'),e=make('table'),h=e.insertRow();for(const x of t.heads)h.append(make('th',x));
for(const r of t.rows){const tr=e.insertRow();r.forEach((x,i)=>{const c=tr.insertCell();c.textContent=x;if(i)c.className='n'})}[...h.children].forEach((x,i)=>{if(i)x.style.textAlign='right'});w.append(e);$('tables').append(make('h2',t.title),w)}
for(const [k,v] of d.settings){const tr=$('settings').insertRow();tr.insertCell().textContent=k;tr.insertCell().textContent=v}
for(const a of d.assumptions)$('assumptions').append(make('li',a));
if(!d.settings.length)$('sethead').remove();if(!d.assumptions.length)$('asshead').remove();
const trim=(x,n)=>(+x.toFixed(n)).toLocaleString('en-US',{maximumFractionDigits:n});
const words={count:x=>x>=1e7?trim(x/1e6,1)+' M':trim(x,x<10?2:0),share:x=>trim(100*x,1)+' %',dollars:x=>'$'+trim(x,2),
seconds:x=>x===0?'0':x<1?trim(1000*x,x<.01?2:0)+' ms':x<120?trim(x,1)+' s':x<7200?trim(x/60,1)+' min':trim(x/3600,1)+' h',
bytes:x=>x===0?'0':x>=2**40?trim(x/2**40,2)+' TiB':x>=2**30?trim(x/2**30,2)+' GiB':x>=2**20?trim(x/2**20,1)+' MiB':trim(x/1024,1)+' KiB'};
function ticks(least,most,count,unit){let base=1;if(unit==='seconds')base=most>7200?3600:most>120?60:1;if(unit==='bytes')base=most>=2**40?2**40:most>=2**30?2**30:2**20;
const raw=Math.max(1e-12,(most-least)/base/count),p=10**Math.floor(Math.log10(raw)),step=base*p*([1,2,5,10].find(m=>m*p>=raw*.999)||10),list=[];
for(let x=Math.ceil(least/step-1e-9)*step;x<=most+step*1e-6;x+=step)list.push(x);return {list,top:Math.ceil(most/step-1e-9)*step}}
const ns='http://www.w3.org/2000/svg',el=(tag,at,text)=>{const e=document.createElementNS(ns,tag);for(const k in at)e.setAttribute(k,at[k]);if(text!==undefined)e.textContent=text;return e};
function chart(c){const key=make('div',undefined,'key'),v=el('svg',{role:'img','aria-label':c.title});
c.series.forEach((s,i)=>{const e=make('span'),q=make('i');q.style.background=`var(--c${i%6})`;e.append(q,s.name);key.append(e)});
const box=make('div');box.append(make('h2',c.title),key,v);$('charts').append(box);
const fx=words[c.x_unit],fy=words[c.y_unit],ys=c.series.flatMap(s=>s.y).filter(y=>y!==null);
const draw=()=>{v.textContent='';const W=Math.max(260,v.clientWidth||900),H=210,L=62,R=14,T=20,B=40;v.setAttribute('viewBox',`0 0 ${W} ${H}`);
const lx=c.log_x?x=>Math.log(Math.max(1e-9,x)):x=>x,x0=c.x.length?(c.log_x?Math.min(...c.x):Math.min(0,...c.x)):0,x1=c.x.length?Math.max(...c.x,x0+1e-9):1;
const yt=ticks(0,Math.max(1e-9,...ys),4,c.y_unit),top=yt.top||1,X=x=>L+(lx(x)-lx(x0))/Math.max(1e-12,lx(x1)-lx(x0))*(W-L-R),Y=y=>H-B-y/top*(H-T-B);
for(const y of ticks(0,top,4,c.y_unit).list){v.append(el('line',{x1:L,x2:W-R,y1:Y(y),y2:Y(y),class:'grid'}),el('text',{x:L-6,y:Y(y)+4,'text-anchor':'end'},fy(y)))}
let xs=[];if(c.log_x){for(let p=10**Math.floor(Math.log10(Math.max(1e-9,x0)));p<=x1*1.001;p*=10)for(const m of W<500?[1]:[1,2,5])if(p*m>=x0*.999&&p*m<=x1*1.001)xs.push(p*m);if(!xs.length)xs=[x0,x1]}else xs=ticks(x0,x1,Math.max(2,Math.min(8,W/110)),c.x_unit).list;
for(const x of xs)v.append(el('line',{x1:X(x),x2:X(x),y1:H-B,y2:H-B+4,class:'axis'}),el('text',{x:Math.min(W-R,X(x)),y:H-B+16,'text-anchor':X(x)>W-40?'end':'middle'},fx(x)));
v.append(el('line',{x1:L,x2:W-R,y1:H-B,y2:H-B,class:'axis'}),el('line',{x1:L,x2:L,y1:T,y2:H-B,class:'axis'}),el('text',{x:4,y:11},c.y_name),el('text',{x:W-R,y:H-6,'text-anchor':'end'},c.x_name));
c.series.forEach((s,i)=>{let run=[];const flush=()=>{if(run.length>1)v.append(el('polyline',{points:run.map(p=>p.join(',')).join(' '),fill:'none',stroke:`var(--c${i%6})`,'stroke-width':2}));else if(run.length)v.append(el('circle',{cx:run[0][0],cy:run[0][1],r:2,fill:`var(--c${i%6})`}));run=[]};
c.x.forEach((x,j)=>{const y=s.y[j];if(y===null)return flush();if(c.dots)v.append(el('circle',{cx:X(x),cy:Y(y),r:4,fill:`var(--c${i%6})`}));else run.push([X(x).toFixed(1),Y(y).toFixed(1)])});flush()});
v.onmousemove=m=>{const b=v.getBoundingClientRect(),at=m.clientX-b.left;let n=-1;c.x.forEach((x,j)=>{if(n<0||Math.abs(X(x)-at)<Math.abs(X(c.x[n])-at))n=j});if(n<0)return;
const o=$('tip');o.style.display='block';o.style.left=Math.max(4,Math.min(m.clientX+12,innerWidth-210))+'px';o.style.top=m.clientY+12+'px';
o.textContent=fx(c.x[n])+'\n'+c.series.map(s=>s.name+': '+(s.y[n]===null?'none':fy(s.y[n]))).join('\n')};v.onmouseleave=()=>$('tip').style.display='none'};
draw();addEventListener('resize',draw)}
d.charts.forEach(chart);
</script></body></html>
)page";

const char* name_of(PageUnit unit) {
  switch (unit) {
    case PageUnit::kShare:
      return "share";
    case PageUnit::kSeconds:
      return "seconds";
    case PageUnit::kBytes:
      return "bytes";
    case PageUnit::kDollars:
      return "dollars";
    default:
      return "count";
  }
}

// Six digits are more than a line on a screen has.
Json numbers(const std::vector<double>& values) {
  Json list = Json::array();
  for (const double value : values) {
    if (!std::isfinite(value)) {
      list.push_back(nullptr);
    } else if (value == 0) {
      list.push_back(0);
    } else {
      const double scale = std::pow(10.0, 6 - std::ceil(std::log10(std::abs(value))));
      list.push_back(std::isfinite(scale) && scale > 0 ? std::round(value * scale) / scale : value);
    }
  }
  return list;
}

Json to_json(const Page& page) {
  Json cards = Json::array(), bars = Json::array(), tables = Json::array(), charts = Json::array(),
       settings = Json::array();
  for (const PageCard& card : page.cards)
    cards.push_back({{"id", card.id}, {"name", card.name}, {"value", card.value}});
  for (const PageBars& table : page.bars) {
    Json rows = Json::array();
    for (const PageRow& row : table.rows)
      rows.push_back({{"name", row.name},
                      {"value", row.value},
                      {"id", row.id},
                      {"share", std::isfinite(row.share) ? row.share : 0}});
    bars.push_back({{"title", table.title}, {"rows", rows}});
  }
  for (const PageTable& table : page.tables)
    tables.push_back({{"title", table.title}, {"heads", table.heads}, {"rows", table.rows}});
  for (const PageChart& chart : page.charts) {
    Json series = Json::array();
    for (const PageSeries& one : chart.series) series.push_back({{"name", one.name}, {"y", numbers(one.y)}});
    charts.push_back({{"title", chart.title},
                      {"x_name", chart.x_name},
                      {"y_name", chart.y_name},
                      {"x_unit", name_of(chart.x_unit)},
                      {"y_unit", name_of(chart.y_unit)},
                      {"log_x", chart.log_x},
                      {"dots", chart.dots},
                      {"x", numbers(chart.x)},
                      {"series", series}});
  }
  for (const auto& [key, value] : page.settings) settings.push_back(Json::array({key, value}));
  return {{"title", page.title}, {"say", page.say},  {"cards", cards},       {"bars", bars},
          {"tables", tables},    {"charts", charts}, {"settings", settings}, {"assumptions", page.assumptions}};
}

// Inside a script element only "</" and "<!--" could end it.
std::string inside_script(std::string text) {
  for (std::size_t at = 0; (at = text.find('<', at)) != std::string::npos; at += 6) text.replace(at, 1, "\\u003c");
  return text;
}

}  // namespace

std::string render(const Page& page, const std::string& data) {
  // Names of files need not be UTF-8; what is not is replaced.
  const std::string model = to_json(page).dump(-1, ' ', false, Json::error_handler_t::replace);
  return std::string(kHead) + inside_script(data.empty() ? "{}" : data) +
         "</script><script type=\"application/json\" id=\"page\">" + inside_script(model) + kScript;
}

std::string grouped_number(std::uint64_t number) {
  if (number < 1000) return std::to_string(number);
  return fmt::format("{},{:03}", grouped_number(number / 1000), number % 1000);
}

std::string short_time(double s) {
  if (!std::isfinite(s)) return "never";
  if (s < 1) return fmt::format("{:.0f} ms", s * 1e3);
  return s < 120    ? fmt::format("{:.1f} s", s)
         : s < 7200 ? fmt::format("{:.0f} min", s / 60)
                    : fmt::format("{:.1f} h", s / 3600);
}

std::string short_bytes(double bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  std::size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(kUnits)) bytes /= 1024, ++unit;
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.1f} {}", bytes, kUnits[unit]);
}

std::string short_share(double share) { return fmt::format("{:.1f} %", 100 * share); }

}  // namespace firn::sim
