// Every text of the page in both languages. {0}, {1} are filled in.
import { state, use } from "./store.js";

export const TEXTS = {
  make: ["Make", "生成"], keep: ["Gallery", "图库"], admin: ["Admin", "管理"],
  prompt: ["Prompt", "提示词"], prompt_hint: ["What do you want to see?", "想画什么？"],
  negative: ["Negative prompt", "负面提示词"], negative_hint: ["What should not be there; works with guidance over 0", "不想出现的内容；引导大于 0 时有效"],
  preset: ["Preset", "预设"], style: ["Style", "风格"], none: ["None", "无"],
  size: ["Size", "尺寸"], auto: ["Auto", "自动"], width: ["Width", "宽"], height: ["Height", "高"],
  advanced: ["Steps and guidance", "步数与引导"], steps: ["Steps", "步数"], guidance: ["Guidance", "引导"],
  seed: ["Seed", "种子"], random: ["random each time", "每次随机"], lock: ["Keep this seed", "固定种子"], dice: ["New seed", "换一个种子"],
  count: ["Pictures", "张数"], format: ["Format", "格式"], draw: ["Draw", "开始生成"], drawing: ["Sending…", "正在提交…"],
  more: ["Show more", "显示更多"], jobs: ["Latest jobs", "最近任务"], nothing: ["Nothing drawn yet", "还没有图片"],
  try_one: ["Try one of these:", "试试这些："],
  queued: ["Waiting", "排队中"], running: ["Drawing", "生成中"], canceling: ["Stopping", "正在停止"], succeeded: ["Done", "完成"],
  failed: ["Failed", "失败"], canceled: ["Canceled", "已取消"], expired: ["Expired", "已过期"],
  place: ["{0} of {1}", "第 {0} 位，共 {1} 位"], next: ["next in line", "即将开始"], eta: ["~{0} s", "约 {0} 秒"], step: ["step {0}/{1}", "第 {0}/{1} 步"],
  took: ["{0} s", "{0} 秒"], paused: ["paused by the operator", "队列已被管理员暂停"],
  from_cache: ["from the cache", "来自缓存"], partial: ["{0} of {1} pictures are missing", "{1} 张中缺 {0} 张"], deleted: ["deleted", "已删除"],
  cancel: ["Cancel", "取消"], remove: ["Delete", "删除"], retry: ["Try again", "重试"], download: ["Download", "下载"], details: ["Details", "详情"],
  use: ["Use these settings", "使用这些设置"], variations: ["Variations", "生成变体"], copy_curl: ["Copy as curl", "复制为 curl"], copy_python: ["Copy as Python", "复制为 Python"],
  copied: ["Copied", "已复制"], close: ["Close", "关闭"], request_id: ["Request {0}", "请求 {0}"], job_id: ["Job {0}", "任务 {0}"], copy: ["Copy", "复制"],
  search: ["Search prompts", "搜索提示词"], select: ["Select", "选择"], selected: ["{0} selected", "已选 {0} 张"], clear: ["Clear", "清除"],
  select_all: ["Select all shown", "全选已显示"], delete_selected: ["Delete selected", "删除所选"], delete_all: ["Delete all…", "全部删除…"],
  sure: ["Delete {0} pictures for good?", "永久删除 {0} 张图片？"], sure_one: ["Delete this picture for good?", "永久删除这张图片？"], sure_all: ["This deletes all your pictures, {0} in number, for good. Type {0} to confirm.", "这将永久删除全部 {0} 张图片。请输入 {0} 以确认。"],
  sure_job: ["Delete this job and its pictures for good?", "永久删除此任务及其图片？"],
  counting: ["Counting…", "正在统计…"], gone: ["{0} deleted", "已删除 {0} 张"], nothing_found: ["No picture has that in its prompt", "没有符合的图片"],
  created: ["Created", "创建于"], model: ["Model", "模型"], bytes: ["File", "文件"], weights: ["Weights", "权重"], engine: ["Engine", "引擎"], hash: ["SHA-256", "SHA-256"],
  timings: ["Timings", "用时"], queue_ms: ["queue", "排队"], encode_ms: ["encode", "编码"], denoise_ms: ["denoise", "去噪"], decode_ms: ["decode", "解码"], total_ms: ["total", "总计"],
  online: ["Connected", "已连接"], offline: ["Offline: trying to reconnect", "连接断开，正在重连"], connecting: ["Connecting", "正在连接"],
  not_ready: ["starting", "启动中"], replicas: ["{0} replicas", "{0} 个副本"], replica: ["1 replica", "1 个副本"], in_queue: ["{0} waiting, {1} drawing", "{0} 个等待，{1} 个生成中"],
  vram: ["VRAM {0} / {1} GB", "显存 {0} / {1} GB"], quota: ["{0}: {1} of {2} left", "{0}：剩余 {1} / {2}"],
  sign_in: ["Sign in", "登录"], key: ["API key", "API 密钥"], sign_in_hint: ["This service asks for an API key. It is kept in a cookie that no script can read.", "此服务需要 API 密钥。密钥保存在脚本无法读取的 Cookie 中。"], sign_out: ["Sign out", "退出"],
  drop: ["Drop the picture here", "将图片放在这里"], open_picture: ["Open a picture…", "打开图片…"],
  loaded: ["Settings loaded from the picture", "已从图片读取设置"], no_settings: ["There are no settings in this picture", "这张图片里没有设置"], sent: ["Sent", "已提交"],
  language: ["中文", "English"], theme: ["Colours: {0}", "配色：{0}"], theme_auto: ["as the system", "跟随系统"], theme_light: ["light", "浅色"], theme_dark: ["dark", "深色"],
  whole_queue: ["Everybody's queue", "所有人的队列"], user: ["User", "用户"], status: ["Status", "状态"], pause: ["Pause", "暂停"], resume: ["Resume", "继续"], reload: ["Reload config", "重新加载配置"],
  reloaded: ["Reloaded. Changed: {0}", "已重新加载。变更：{0}"], is_paused: ["The queue is paused", "队列已暂停"], queue_empty: ["Nobody waits", "队列为空"],
  keys: ["API keys", "API 密钥"], name: ["Name", "名称"], role: ["Role", "角色"], new_key: ["New key", "新建密钥"], revoke: ["Revoke", "吊销"], revoked: ["revoked", "已吊销"], once: ["Copy it now: it is shown this once.", "请立即复制：仅显示这一次。"],
  sign_in_with: ["Sign in with {0}", "使用 {0} 登录"], or_key: ["Sign in with an API key", "使用 API 密钥登录"], or_password: ["Sign in with user and password", "使用用户名和密码登录"],
  password: ["Password", "密码"], password_hint: ["The password goes to your directory and is not kept.", "密码仅用于目录服务验证，不会保存。"],
  nothing_changed: ["Nothing has changed", "没有变更"], files: ["Hot files", "热加载文件"], file: ["File", "文件"], version: ["Version", "版本"], loaded_at: ["At work since", "生效时间"],
  refused: ["A newer version is refused:", "新版本未通过检查："], priority: ["Priority", "优先级"], since: ["Waiting since", "提交时间"], expires: ["Expires", "到期"], never: ["never", "永不"], expired_key: ["expired", "已过期"],
  days: ["Days (empty: for ever)", "有效天数（留空为永久）"], for_user: ["User (empty: the name)", "用户（留空同名称）"], sure_revoke: ["Revoke {0} for good? Whoever uses it is out within seconds.", "永久吊销 {0}？其使用者将在数秒内失去访问权限。"],
  only_first: ["The first {0} are shown", "仅显示前 {0} 个"], api: ["API", "API 文档"], about: [" ({0})", "（{0}）"],
  brought: ["What about this picture?", "如何使用这张图片？"], load_settings: ["Load its settings", "读取其设置"], begin_with: ["Begin with it", "作为参考图"],
  reference: ["The picture to begin with", "参考图"], strength: ["How much may change", "变化程度"], no_reference: ["Begin with nothing", "移除参考图"], began_with: ["Began with", "参考图"],
  paint: ["Paint what may change", "涂抹要改变的部分"], painted: ["Only what is painted changes", "仅改变涂抹的部分"], paint_hint: ["What you paint is drawn anew, the rest stays as it is.", "涂抹的部分会重新生成，其余保持不变。"],
  brush: ["Brush", "画笔"], erase: ["Erase", "橡皮擦"], brush_size: ["Size", "大小"], undo: ["Undo", "撤销"], swap: ["Swap", "反转"], swap_hint: ["What is painted becomes what is not", "互换已涂抹与未涂抹的部分"], paint_done: ["Use this", "使用"],
  masked: ["What may change", "要改变的部分"], reference_gone: ["The picture that it began with is no longer there", "原参考图已不存在"],
  adapter: ["Adapter", "适配器"], adapter_scale: ["Strength of the adapter", "适配器强度"],
  controlnet: ["ControlNet", "ControlNet"], control: ["The picture to follow", "控制图"], control_scale: ["How closely it is followed", "控制强度"],
  control_choose: ["Choose the picture to follow…", "选择控制图…"], control_other: ["Another picture…", "换一张图片…"], control_gone: ["The picture that it followed is no longer there", "原控制图已不存在"], follow_it: ["Follow it", "作为控制图"],
  e_offline: ["The service cannot be reached. It will be tried again; nothing that was accepted is lost.", "无法连接服务。将自动重试；已接受的任务不会丢失。"],
  e_invalid_value: ["This value is not accepted", "这个值不被接受，请修改后重试"], e_controlnet_not_found: ["There is no such ControlNet", "没有这个 ControlNet"], e_prompt_too_long: ["The prompt is too long", "提示词太长，请缩短"],
  e_invalid_config: ["The file has mistakes; the old one stays at work", "文件有错误，旧版本继续生效"],
  e_unauthenticated: ["This key is not valid", "凭据无效，请检查密钥或密码"], e_forbidden: ["Your role may not do this", "您的角色无权执行此操作"],
  e_sign_in_expired: ["This sign-in has expired. Please begin again.", "登录已过期，请重新开始。"], e_sign_in_refused: ["The provider did not let you in", "身份提供方拒绝了登录"],
  e_sign_in_failed: ["The provider's answer does not prove who you are. Please begin again.", "身份提供方的答复无法验证，请重新登录。"], e_too_many_sign_ins: ["Too many failed sign-ins", "登录失败次数过多，请稍后再试"],
  e_link_refused: ["This link has expired: reload the page", "链接已失效，请刷新页面"], e_not_found: ["This is no longer there", "内容不存在或已删除"], e_model_not_found: ["There is no such model", "没有这个模型"],
  e_method_not_allowed: ["The service does not know this call", "服务不支持此调用"], e_body_too_large: ["This is too large to send", "发送的内容太大"], e_body_too_slow: ["Sending took too long", "发送超时，请检查网络"],
  e_range_not_satisfiable: ["That part of the picture does not exist", "图片没有这一部分"], e_idempotency_key_reused: ["This was sent before with other settings: send it again", "相同编号已提交过其他设置，请重新提交"],
  e_quota_exceeded: ["Your quota is used up", "配额已用完"], e_queue_full: ["The queue is full", "队列已满，请稍后再试"], e_not_offered: ["This service does not offer that", "此服务不提供该功能"],
  e_not_ready: ["The service is still starting", "服务正在启动，请稍候"], e_unavailable: ["The service cannot do this just now", "服务暂时不可用，请稍后再试"], e_stale_writer: ["The queue is being replaced: try again", "队列正在切换，请重试"],
  e_deadline_infeasible: ["It cannot be done in time", "无法在期限内完成"], e_deadline_exceeded: ["It was not done in time", "已超过期限"], e_request_timeout: ["It took too long and was stopped", "耗时过长，已停止"],
  e_job_canceled: ["Somebody else canceled this job", "任务已被他人取消"], e_internal_error: ["Something went wrong here. Try again; the id below helps the operator.", "服务内部出错。请重试；可将下方编号提供给管理员。"],
  e_out_of_memory: ["The GPU ran out of memory: try a smaller size", "显存不足，请尝试更小的尺寸"], e_device_lost: ["The GPU failed; the job goes on elsewhere", "显卡故障，任务将在别处继续"],
  e_replica_lost: ["This job lost its worker too often and was given up", "任务多次失去执行进程，已放弃"], e_store_full: ["The disk for pictures is full: tell the operator", "图片存储空间已满，请联系管理员"],
  e_store_unavailable: ["The picture store does not answer; nothing is lost", "图片存储暂时不可用，数据不会丢失"], e_asset_corrupted: ["This picture is damaged: draw it again", "图片已损坏，请重新生成"],
  "q_images-per-day": ["Pictures today", "今日图片"], "q_pixel-steps-per-day": ["Pixel steps today", "今日像素步"],
  e_in: ["Possible again in {0} s", "{0} 秒后可再试"],
};

export const EXAMPLES = {
  en: ["a red fox on a yellow background", "a penguin in the snow", "a rocket on a dark blue background"],
  zh: ["a red fox on a yellow background", "a penguin in the snow", "a rocket on a dark blue background"],
};

export function t(key, ...values) {
  const text = TEXTS[key]?.[state.lang === "zh" ? 1 : 0] ?? key;
  return text.replace(/\{(\d)\}/g, (_, i) => values[i]);
}
export const has = (key) => key in TEXTS;
export const useLang = () => use((s) => s.lang);
export const titled = (words, name) => words?.[state.lang] ?? words?.en ?? name;

const ENDINGS = { one: "st", two: "nd", few: "rd", other: "th" };
const ordinals = new Intl.PluralRules("en", { type: "ordinal" });
export const ordinal = (n) => (state.lang === "zh" ? `${n}` : `${n}${ENDINGS[ordinals.select(n)]}`);
export const few = (n) => new Intl.NumberFormat(state.lang, { notation: "compact" }).format(Math.floor(n));
export const when = (iso) => new Date(iso).toLocaleString(state.lang === "zh" ? "zh-CN" : undefined, { dateStyle: "medium", timeStyle: "short" });
export const size = (bytes) => (bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
