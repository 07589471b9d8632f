"""The style sheet of the page: light and dark, wide and narrow, and on paper."""

STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1a2130;--soft:#5a6577;--line:#dde2ea;
--faint:#eef1f5;--act:#b3261e;--act-bg:#fdecea;--look:#8a5300;--look-bg:#fff4dc;--good:#186a3b;
--good-bg:#e6f4ea;--link:#1f58b0;--memory:#1b7f5c;--memory-bg:#cdebdd;--paused:#1d6fa5;
--paused-bg:#cfe6f6;--quiesced:#6a4fb3;--quiesced-bg:#e2dbf5;--crash:#a35c00;--crash-bg:#fbe3bd;
--offline:#59636f;--offline-bg:#dfe4ea;--bar:#7488a3;--ram:#3c7dc4}
@media screen and (prefers-color-scheme:dark){:root{--bg:#10141b;--card:#181e27;--ink:#e4e9f1;
--soft:#9aa7b8;--line:#2c3542;--faint:#202834;--act:#ff9d94;--act-bg:#3f1a1a;--look:#f5c04e;
--look-bg:#382a0d;--good:#79d49b;--good-bg:#153423;--link:#8ab8ff;--memory:#62d3a4;
--memory-bg:#154534;--paused:#79c2f0;--paused-bg:#143a55;--quiesced:#bfa9ff;--quiesced-bg:#35295f;
--crash:#f2b155;--crash-bg:#4a3210;--offline:#b3bdc9;--offline-bg:#333d49;--bar:#8296b0;
--ram:#5ba0ec}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif}
main,header,footer{max-width:1180px;margin:0 auto;padding:0 20px}
header{padding-top:28px}
h1{font-size:1.65rem;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 12px}
h3{font-size:1.05rem;margin:0;overflow-wrap:anywhere}
p{margin:0 0 10px}
a{color:var(--link)}
.soft,footer{color:var(--soft)}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px 20px;
margin:16px 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(155px,1fr));gap:12px;
margin:18px 0 0;
padding:0}
.tiles div{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:10px 14px}
.tiles dt{color:var(--soft);font-size:.84rem}
.tiles dd{margin:0;font-size:1.4rem;font-weight:650;line-height:1.3;overflow-wrap:anywhere}
.tiles small{display:block;font-size:.8rem;font-weight:400;color:var(--soft)}
.findings{list-style:none;margin:0;padding:0}
.findings li{display:grid;grid-template-columns:96px 1fr;gap:0 8px;padding:9px 0;
border-top:1px solid var(--line);overflow-wrap:anywhere}
.findings li:first-child{border-top:0;padding-top:0}
.findings li:last-child{padding-bottom:0}
.badge{align-self:start;justify-self:start;font-size:.8rem;font-weight:650;border-radius:6px;
padding:1px 8px;white-space:nowrap}
.act .badge{color:var(--act);background:var(--act-bg)}
.look .badge,.unknown .badge{color:var(--look);background:var(--look-bg)}
.fine .badge{color:var(--good);background:var(--good-bg)}
.todo{display:block;color:var(--soft)}
.scroll{overflow-x:auto;direction:rtl}
.scroll>*{direction:ltr}
.matrix{border-collapse:separate;border-spacing:2px;font-variant-numeric:tabular-nums;width:100%}
.matrix th{font-weight:500;font-size:.72rem;color:var(--soft);padding:0}
.matrix thead th{min-width:22px;vertical-align:bottom;line-height:1.2}
.matrix thead .week{color:var(--ink);font-weight:650}
.matrix th:first-child{position:sticky;left:0;z-index:1;background:var(--card)}
.matrix tbody th{width:1%;text-align:left;font-size:.86rem;padding:0 10px 0 0;max-width:190px;
overflow:hidden;text-overflow:ellipsis;
white-space:nowrap}
.matrix td{width:22px;min-width:22px;height:30px;padding:0;text-align:center;border-radius:4px;
font-size:.78rem;font-weight:650;line-height:1.1;background:var(--faint);color:var(--soft)}
.matrix .month{min-width:30px;width:1%}
.matrix .gap{min-width:8px;width:8px;background:none}
.matrix i{display:block;font-style:normal;font-weight:400;font-size:.62rem;letter-spacing:-.5px}
td.memory,b.memory{background:var(--memory-bg);color:var(--memory)}
td.paused,b.paused{background:var(--paused-bg);color:var(--paused)}
td.quiesced,b.quiesced{background:var(--quiesced-bg);color:var(--quiesced)}
td.crash,b.crash{background:var(--crash-bg);color:var(--crash)}
td.offline,b.offline{background:var(--offline-bg);color:var(--offline)}
td.lost,b.lost{background:var(--card);color:var(--memory);
box-shadow:inset 0 0 0 1px var(--memory-bg)}
td.failed{box-shadow:inset 0 0 0 2px var(--act)}
td.failed i{color:var(--act);font-weight:700}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin:12px 0 0;padding:0;list-style:none;
font-size:.84rem;color:var(--soft)}
.legend b{display:inline-block;min-width:20px;text-align:center;border-radius:4px;margin-right:6px}
.guest{break-inside:avoid}
.guest header{display:flex;flex-wrap:wrap;gap:2px 14px;align-items:baseline;margin:0 0 10px;
padding:0}
.guest header p{margin:0;color:var(--soft);font-size:.88rem}
.timeline{display:grid;grid-template-columns:112px minmax(0,1fr);gap:0 10px}
.labels{display:flex;flex-direction:column;font-size:.76rem;line-height:15px;color:var(--soft)}
.labels .bars{height:50px;padding-top:6px;color:var(--ink)}
.labels .bars small{display:block;font-size:.72rem;color:var(--soft)}
.labels .lane{height:15px;white-space:nowrap}
.plot{display:block;width:100%;overflow:visible}
.plot path{vector-effect:non-scaling-stroke;fill:none}
.plot .base{stroke:var(--line)}
.plot .zone{stroke:var(--line);stroke-dasharray:2 3}
.plot .pause{stroke:var(--bar);stroke-width:2.5}
.plot .ram{stroke:var(--ram);stroke-width:2.5}
.plot .area{fill:var(--ram);fill-opacity:.3;stroke:var(--ram);stroke-width:1.5}
.plot .mark{stroke-width:9}
path.memory{stroke:var(--memory)}
path.paused{stroke:var(--paused)}
path.quiesced{stroke:var(--quiesced)}
path.lost{stroke:var(--memory);opacity:.45}
path.crash{stroke:var(--crash)}
path.offline{stroke:var(--offline)}
path.read{stroke:var(--soft)}
path.started{stroke:var(--good)}
path.failed{stroke:var(--act)}
path.offsite{stroke:var(--link)}
.labels .failed{color:var(--act);font-weight:650}
.tick{font-size:11px;fill:var(--soft);text-anchor:middle}
.tick.now{text-anchor:end}
.screens{display:flex;flex-wrap:wrap;gap:14px;margin-top:14px}
figure{margin:0;width:220px;max-width:100%}
figure img{display:block;width:100%;height:auto;max-height:170px;object-fit:contain;
object-position:left top;background:#000;border:1px solid var(--line);border-radius:6px}
figcaption{font-size:.78rem;line-height:1.35;color:var(--soft);margin-top:4px;
overflow-wrap:anywhere}
details{margin-top:12px}
.wide{overflow-x:auto}
summary{cursor:pointer;color:var(--link);font-size:.9rem}
.points{border-collapse:collapse;width:100%;font-size:.84rem;font-variant-numeric:tabular-nums}
.points th,.points td{text-align:left;padding:4px 12px 4px 0;border-top:1px solid var(--line);
vertical-align:top}
.points thead th{color:var(--soft);font-weight:500;border-top:0}
.points .number{text-align:right;white-space:nowrap}
.points td:last-child{overflow-wrap:anywhere;padding-right:0}
.share{display:grid;grid-template-columns:minmax(80px,max-content) 1fr max-content;gap:5px 12px;
align-items:center;margin:14px 0 0;font-size:.86rem}
.share dt{overflow-wrap:anywhere}
.share dd{margin:0;font-variant-numeric:tabular-nums}
.share svg{display:block;width:100%}
.share rect{fill:var(--ram)}
footer{padding:6px 20px 36px;font-size:.84rem}
@media (max-width:700px){
body{font-size:14px}
main,header,footer{padding-left:12px;padding-right:12px}
section{padding:14px}
.tiles{grid-template-columns:1fr 1fr;gap:8px}
.findings li{grid-template-columns:1fr;gap:4px}
.matrix tbody th{max-width:96px}
.timeline{grid-template-columns:82px minmax(0,1fr)}
.tick.minor{display:none}
figure{width:calc(50% - 7px)}
}
@media print{
figure{width:140px}
figure img{max-height:90px}
@page{size:A4 landscape;margin:12mm}
:root{--bg:#fff}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
body{font-size:12px}
main,header,footer{max-width:none;padding:0}
section{break-inside:avoid;border-color:#bbb}
.scroll{overflow:visible;direction:ltr}
.matrix tr{break-inside:avoid}
.whole{break-inside:auto}
details:not([open]){display:none}
h2,h3,.guest header{break-after:avoid}
.matrix th:first-child{position:static}
.timeline,.screens{break-inside:avoid}
a{color:inherit;text-decoration:none}
}
""".replace("\n", "")
